"""A result is saved with all that is needed to draw its images again."""

import pytest
from PIL import Image
from support.errors import raises

from sdpipe import Result, SdpipeWarning, UsageError, save_image
from sdpipe.io import png
from sdpipe.io.mark import COMPOSITE, GENERATED, PNG_XMP, find_term
from sdpipe.io.texts import read_texts
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


def term(path):
    return find_term(read_texts(path, ()).get(PNG_XMP, ""))


def test_without_metadata_and_without_mark(result, tmp_path):
    for path in result.save(tmp_path / "x.png", with_metadata=False):
        assert (png.read(path), term(path)) == ({}, GENERATED)
    for path in result.save(tmp_path / "y.png", mark=False):
        assert (read_record(path).source, term(path)) == ("sdpipe", None)


def test_an_image_that_was_drawn_from_another_says_so(tiny, result, tmp_path):
    drawn = tiny.generate("a cat", init_image=result.images[0], seed=3, steps=2, g=1)
    assert term(drawn.save(tmp_path / "x.png")[0]) == COMPOSITE
    path = save_image(drawn.images[0], drawn.records[0], tmp_path / "y.jpg")
    assert term(path) == COMPOSITE
    assert term(save_image(drawn.images[0], None, tmp_path / "z.webp", mark=False)) is None


def test_the_format_of_a_folder(result, tmp_path):
    paths = result.save(tmp_path, format="webp")
    assert [path.name for path in paths] == ["0001-a-cat.webp", "0002-a-dog.webp"]
    with Image.open(paths[1]) as image:
        assert (image.format, image.tobytes()) == ("WEBP", result.images[1].tobytes())
    assert read_record(paths[1]).settings().prompt == "a dog"
    with raises(UsageError, value="format=jpg", rule="contradicts the name x.png"):
        result.save(tmp_path / "x.png", format="jpg")


def test_a_result_without_its_pipeline_has_no_metadata(result, tmp_path):
    bare = Result(result.images, result.settings, result.numbers, result.batch_positions)
    with raises(UsageError, value="result", rule="no pipeline", remedy="without metadata"):
        metadata_for(bare, 0)
    assert len(bare.save(tmp_path / "x.png", with_metadata=False)) == 2


def test_an_unknown_format_is_refused(result, tmp_path):
    with raises(UsageError, value="x.gif"):
        result.save(tmp_path / "x.gif")


def test_one_image_is_saved_with_its_record(result, tmp_path):
    path = save_image(result.images[1], result.records[1], tmp_path / "dog.png")
    assert path == tmp_path / "dog.png"
    assert path.read_bytes() == result.save(tmp_path / "both.png")[1].read_bytes()
    with raises(UsageError, value="dog.png", rule="exists", remedy="overwrite=True"):
        save_image(result.images[0], None, path)
    save_image(result.images[0], None, path, overwrite=True)
    assert png.read(path) == {}
    with raises(UsageError, value="folder", rule="no image file"):
        save_image(result.images[0], None, tmp_path / "folder")


def test_a_result_does_not_replace_files_unless_asked(result, tmp_path):
    result.save(tmp_path / "x.png")
    (tmp_path / "x-1.png").unlink()
    with raises(UsageError, value="x-2.png", rule="exists"):
        result.save(tmp_path / "x.png")
    assert not (tmp_path / "x-1.png").exists()
    assert [path.name for path in result.save(tmp_path / "x.png", overwrite=True)] == [
        "x-1.png",
        "x-2.png",
    ]


def test_a_pipeline_draws_an_image_again(tiny, result, tmp_path):
    path = save_image(result.images[1], result.records[1], tmp_path / "dog.png")
    again = tiny.replay(path)
    assert [image.tobytes() for image in again.images] == [result.images[1].tobytes()]
    assert again.records[0] == result.records[1]
    more = tiny.replay(path, seed=8, n=2)
    assert more.seeds == [8, 9]
    assert {s.prompt for s in more.settings} == {"a dog"}


def test_another_model_is_warned_of(tiny, emoji, result, tmp_path):
    path = save_image(result.images[1], result.records[1], tmp_path / "dog.png")
    with pytest.warns(SdpipeWarning, match=r"^dog\.png: the model's weights are not those"):
        emoji.replay(path)
