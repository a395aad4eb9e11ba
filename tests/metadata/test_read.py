"""An image's record comes from the first program that wrote one."""

import pytest
from PIL import Image
from support.errors import raises
from support.metadata import A1111, INVOKEAI, change, foreign_image, our_image, our_metadata

from sdpipe.errors import SdpipeError
from sdpipe.io import png
from sdpipe.metadata.read import read_record


def test_our_own_comes_before_a1111_and_that_before_invokeai(tmp_path):
    texts = {"parameters": A1111, "invokeai_metadata": INVOKEAI}
    ours = our_metadata()["sdpipe"]
    path = foreign_image(tmp_path / "x.png", **texts, sdpipe=ours)
    assert read_record(path).source == "sdpipe"
    path = foreign_image(tmp_path / "y.png", **texts)
    assert read_record(path).source == "A1111"


def test_an_image_without_metadata(tmp_path):
    Image.new("RGB", (8, 8)).save(path := tmp_path / "x.png")
    with raises(SdpipeError, value=str(path), rule="has no metadata"):
        read_record(path)
    with raises(SdpipeError, value=str(tmp_path / "none.png")):
        read_record(tmp_path / "none.png")


def test_an_error_names_the_image(tmp_path):
    path = our_image(tmp_path / "x.png", change("batch", "n", 0))
    with raises(SdpipeError, value=path, rule="makes no sense: n=0 of its batch is not from 1"):
        read_record(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_every_format_carries_it(tmp_path, suffix):
    path = png.save(Image.new("RGB", (8, 8)), tmp_path / f"x{suffix}", our_metadata("é 日本"))
    assert read_record(path).settings().prompt == "é 日本"


def test_a_line_without_end_is_refused(tmp_path):
    path = foreign_image(tmp_path / "x.png", parameters="a: b, " * 150_000)
    with raises(SdpipeError, rule="a line of"):
        read_record(path)


def test_the_first_text_that_can_be_read_counts(tmp_path):
    dream = '"red apple" -s 4 -W 64 -H 64 -C 7.5 -A k_euler -S 42'
    texts = {"sd-metadata": {"images": [{"seed": 42}]}, "Dream": dream}
    record = read_record(foreign_image(tmp_path / "x.png", **texts))
    assert record.settings().prompt == "red apple"
    assert "text 'sd-metadata' that makes no sense" in record.notes[0]
    assert record.notes[0].endswith("'Dream' is read instead.")
    path = foreign_image(tmp_path / "y.png", sdpipe={"format": 99}, parameters=A1111)
    record = read_record(path)
    assert (record.source, record.settings().seed) == ("A1111", 965400086)
    assert "format 99 is not known here" in record.notes[0]


def test_an_image_that_has_the_mark_alone(tmp_path):
    path = png.save(Image.new("RGB", (8, 8)), tmp_path / "x.jpg", mark="trainedAlgorithmicMedia")
    with raises(
        SdpipeError, value=str(path), rule="as its source it names trainedAlgorithmicMedia"
    ):
        read_record(path)


def test_texts_that_are_no_metadata_are_named(tmp_path):
    path = foreign_image(tmp_path / "x.png", Comment="Created with GIMP", prompt="$ ls")
    with raises(SdpipeError, value=path, rule="known here; its texts are 'Comment', 'prompt'"):
        read_record(path)
