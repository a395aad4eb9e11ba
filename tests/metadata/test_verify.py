"""The verdict on an image that was drawn again, against every way in which a file may differ."""

import json

import pytest
from PIL import Image
from support.metadata import A1111, foreign_image, our_metadata, sample_image

from sdpipe.io import png
from sdpipe.metadata.read import read_record
from sdpipe.metadata.verify import CLOSE, DIFFERENT, IDENTICAL, verify

NOW = our_metadata()["sdpipe"]
NOW["model"] |= {"loras": [], "embeddings": []}


def noisy(amount):
    """The image with every value moved by `amount`, up or down in turn."""
    data = bytearray(sample_image().tobytes())
    for i, value in enumerate(data):
        data[i] = min(255, max(0, value + (amount if i % 2 else -amount)))
    return Image.frombytes("RGB", sample_image().size, bytes(data))


def judge(path, redrawn, now=NOW):
    return verify(path, read_record(path), redrawn, now)


def save(tmp_path, name="x.png", image=None):
    return png.save(image or sample_image(), tmp_path / name, our_metadata())


def test_identical(tmp_path):
    verdict = judge(save(tmp_path), sample_image())
    assert (verdict.outcome, verdict.status, str(verdict)) == ("identical", IDENTICAL, "identical")
    assert (verdict.redraw_matches, verdict.file_matches) == (True, True)
    assert verdict.changed == {}


@pytest.mark.parametrize(
    ("amount", "outcome", "status"),
    [(1, "close", CLOSE), (4, "close", CLOSE), (6, "different", DIFFERENT)],
)
def test_how_far_off(tmp_path, amount, outcome, status):
    verdict = judge(save(tmp_path), noisy(amount))
    assert (verdict.outcome, verdict.status) == (outcome, status)
    assert (verdict.redraw_matches, verdict.file_matches) == (False, True)
    assert verdict.difference.largest == amount
    assert str(verdict).count("\n") == 1  # nothing recorded has changed, it says


def test_another_size_is_different(tmp_path):
    verdict = judge(save(tmp_path), sample_image().resize((8, 8)))
    assert (verdict.outcome, verdict.difference) == ("different", None)


def test_edited(tmp_path):
    for edited in (noisy(1), sample_image().resize((8, 8))):
        path = png.save(edited, tmp_path / "x.png", our_metadata())
        verdict = judge(path, sample_image())
        assert (verdict.outcome, verdict.status) == ("edited", DIFFERENT)
        assert (verdict.redraw_matches, verdict.file_matches) == (True, False)
        assert "\n" not in str(verdict)  # the drawing is right, whatever has changed


def test_an_edited_file_is_called_so_on_another_machine_too(tmp_path):
    """The redrawn image is not quite the recorded one; the file is further from both."""
    verdict = judge(save(tmp_path, image=noisy(9)), noisy(1))
    assert (verdict.outcome, verdict.status) == ("edited", DIFFERENT)
    assert (verdict.redraw_matches, verdict.file_matches) == (False, False)
    assert "the redrawn image does not match the recorded hash" in str(verdict)


def test_a_jpeg_of_another_size_was_edited_if_the_recorded_image_came_out(tmp_path):
    path = save(tmp_path, "x.jpg", sample_image().resize((16, 8)))
    assert judge(path, sample_image()).outcome == "edited"
    verdict = judge(path, noisy(1))
    assert (verdict.outcome, verdict.difference) == ("different", None)


def test_another_hash_was_written_into_the_file(tmp_path):
    path = png.save(noisy(1), tmp_path / "x.png", our_metadata())
    verdict = judge(path, noisy(1))
    assert (verdict.outcome, verdict.redraw_matches) == ("identical", False)
    assert str(verdict) == "identical, although the file carries another hash"


def test_a_jpeg(tmp_path):
    path = save(tmp_path, "x.jpg")
    verdict = judge(path, sample_image())
    assert (verdict.outcome, verdict.file_matches) == ("identical", None)
    assert verdict.difference.psnr > 30
    black = png.save(Image.new("RGB", (32, 16)), tmp_path / "y.jpg", our_metadata())
    assert judge(black, sample_image()).outcome == "edited"
    assert judge(path, noisy(1)).outcome == judge(path, noisy(6)).outcome == "close"
    assert judge(path, noisy(9)).outcome == "different"


def test_what_has_changed_is_named(tmp_path):
    now = json.loads(json.dumps(NOW))
    now["model"] |= {"sha256": "cd" * 32, "parts": {"vae": "owner/vae@x"}}
    now["model"]["loras"] = [{"name": "pencil", "sha256": "0", "weight": 0.5}]
    now |= {"dtype": "bfloat16"}
    verdict = judge(save(tmp_path), noisy(1), now)
    assert verdict.changed == {
        "weights": ("ab" * 32, "cd" * 32),
        "dtype": ("float32", "bfloat16"),
        "vae": ("none", "owner/vae@x"),
        "loras": ("none", "pencil:0.5"),
    }
    assert "  dtype: float32 then, bfloat16 now" in str(verdict).splitlines()
    assert json.loads(json.dumps(verdict.to_dict()))["changed"]["dtype"]["now"] == "bfloat16"


def test_an_image_of_another_program(tmp_path):
    verdict = judge(foreign_image(tmp_path / "x.png", parameters=A1111), noisy(1))
    assert verdict.outcome == "close"
    assert (verdict.redraw_matches, verdict.file_matches) == (None, None)
    assert verdict.changed == {"model": ("realistic", "emoji"), "program": ("v1.10.1", "sdpipe")}
