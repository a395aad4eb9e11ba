"""Any picture that a person hands over is read as RGB, or refused in a sentence."""

import numpy as np
import pytest
from PIL import Image

from sdpipe.errors import UsageError
from sdpipe.io.pixels import read_picture


def ramp(mode, size=(40, 30)):
    grey = np.tile(np.linspace(0, 255, size[0]).round().astype(np.uint8), (size[1], 1))
    return Image.fromarray(grey).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("RGB", s) for s in ("png", "jpg", "webp", "bmp", "tiff", "gif", "ppm")),
        *(("L", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png")),
        *(("CMYK", "jpg"), ("I", "tiff"), ("F", "tiff")),
    ],
)
def test_any_mode_and_format_becomes_the_same_rgb(tmp_path, mode, suffix):
    ramp(mode).save(tmp_path / f"x.{suffix}")
    picture = read_picture(tmp_path / f"x.{suffix}")
    assert picture.mode == "RGB"
    assert picture.size == (40, 30)
    if mode != "1":
        off = np.asarray(picture, int) - np.asarray(ramp("RGB"), int)
        assert abs(off).max() <= 12


def test_sixteen_bits_keep_their_scale(tmp_path):
    levels = (np.arange(1200).reshape(30, 40) * 20).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png")
    shown = np.asarray(read_picture(tmp_path / "x.png"))[..., 0]
    assert abs(shown - levels / 257).max() <= 0.51


def test_what_is_transparent_lies_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "x.png")
    assert read_picture(tmp_path / "x.png").getextrema() == ((255, 255),) * 3


def test_a_picture_that_lies_on_its_side_is_put_up(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10), "red").save(tmp_path / "x.jpg", exif=exif)
    assert read_picture(tmp_path / "x.jpg").size == (10, 20)


def test_what_is_no_picture_is_told(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"none\.png cannot be read: No such file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(UsageError, match="cannot be read"):
        read_picture(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(UsageError, match="is no picture that can be read; the formats are"):
        read_picture(tmp_path / "text.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(UsageError, match="is no picture"):
        read_picture(tmp_path / "empty.png")
    ramp("RGB", (300, 300)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=r"half\.jpg cannot be read: it is damaged or cut short"):
        read_picture(tmp_path / "half.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    for side in (1100, 2000):  # Pillow warns of the one, and refuses the other
        Image.new("1", (side, side)).save(tmp_path / "bomb.png")
        with pytest.raises(UsageError, match="larger than 1 million pixels"):
            read_picture(tmp_path / "bomb.png")
