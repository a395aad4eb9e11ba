"""A result is saved with all that is needed to draw its images again."""

import pytest
from PIL import Image
from support.errors import raises

from sdpipe import Result, UsageError
from sdpipe.io import png
from sdpipe.metadata.read import read_record
from sdpipe.metadata.save import metadata_for

pytestmark = pytest.mark.filterwarnings("ignore:the latents grew to")  # random weights


@pytest.fixture(scope="module")
def result(tiny):
    return tiny.generate(["a cat", "a dog"], seed=3, steps=2, g=2)


@pytest.mark.parametrize(
    ("out", "names"),
    [
        ("cat.png", ["cat-1.png", "cat-2.png"]),
        ("cat.webp", ["cat-1.webp", "cat-2.webp"]),
        ("cats/", ["0001-a-cat.png", "0002-a-dog.png"]),
    ],
)
def test_every_image_says_how_it_was_drawn(tiny, result, tmp_path, out, names):
    paths = result.save(f"{tmp_path}/{out}")
    assert [path.name for path in paths] == names
    for k, path in enumerate(paths):
        with Image.open(path) as image:
            assert image.tobytes() == result.images[k].tobytes()
        record = read_record(path)
        assert record.settings() == type(record.settings())(**vars(result.settings[k]))
        assert (record.n, record.index) == (2, k)
        assert record.model["sha256"] == tiny.components.model.identity()["sha256"]
        assert (record.device, record.dtype, record.speed) == ("cpu", "float32", "default")


def test_without_metadata(result, tmp_path):
    for path in result.save(tmp_path / "x.png", with_metadata=False):
        assert png.read(path) == {}


def test_a_result_without_its_pipeline_has_no_metadata(result, tmp_path):
    bare = Result(result.images, result.settings, result.batch_positions)
    with raises(UsageError, value="result", rule="no pipeline", remedy="without metadata"):
        metadata_for(bare, 0)
    assert len(bare.save(tmp_path / "x.png", with_metadata=False)) == 2


def test_an_unknown_format_is_refused(result, tmp_path):
    with raises(UsageError, value="x.gif"):
        result.save(tmp_path / "x.gif")
