"""Images are opened whoever made them: read as RGB, or refused."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.errors import raises

from sdpipe.errors import SdpipeError, SdpipeWarning, UsageError
from sdpipe.io.pixels import Difference, compare_pixels, load_pixels, open_image, read_image


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
    image = read_image(tmp_path / f"x.{suffix}")
    assert image.mode == "RGB"
    assert image.size == (40, 30)
    if mode != "1":
        off = np.asarray(image, int) - np.asarray(ramp("RGB"), int)
        assert abs(off).max() <= 12


def test_sixteen_bits_keep_their_scale(tmp_path):
    levels = (np.arange(1200).reshape(30, 40) * 20).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png")
    shown = np.asarray(read_image(tmp_path / "x.png"))[..., 0]
    assert abs(shown - levels / 257).max() <= 0.51


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").getextrema() == ((255, 255),) * 3


def test_an_image_is_rotated_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10), "red").save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").size == (10, 20)


def test_what_is_not_an_image_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    ramp("RGB", (300, 300)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    ramp("RGB").save(tmp_path / "x.gif")
    for name, rule in (
        ("text.png", "unknown format"),
        ("empty.png", "unknown format"),
        ("none.png", "No such file"),
        (".", "Is a directory"),
        ("a\0b.png", "cannot be read"),
        ("half.jpg", "damaged or cut short"),
    ):
        with raises(UsageError, value=str(tmp_path / name), rule=rule):
            read_image(tmp_path / name)
        with raises(SdpipeError, value=str(tmp_path / name), rule=rule):
            load_pixels(tmp_path / name)
    with raises(SdpipeError, value="x.gif", rule="unknown format", remedy="PNG, JPEG, WEBP"):
        load_pixels(tmp_path / "x.gif")  # only the formats that sdpipe writes


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    whole = tmp_path / "whole.png"
    Image.new("RGB", (8, 8)).save(whole)
    data = whole.read_bytes()
    for side, rule in ((10_000, "has 10000 x 10000 pixels"), (60_000, "too many pixels")):
        header = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
        check = struct.pack(">I", zlib.crc32(header))
        (tmp_path / "bomb.png").write_bytes(data[:12] + header + check + data[33:])
        for read in (read_image, load_pixels):
            with raises(SdpipeError, value="bomb.png", rule=rule):
                read(tmp_path / "bomb.png")
    with raises(UsageError, rule="more than 4e-05 million", remedy="scale it down"):
        read_image(whole, max_pixels=40)


def test_what_is_not_a_file_does_not_block_the_reader(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**40)
    with (
        raises(SdpipeError, value="x.png", rule="a device or a pipe"),
        open_image(tmp_path / "x.png"),
    ):
        pass
    with raises(SdpipeError, rule="1099511627776 bytes"), open_image(tmp_path / "large.png"):
        pass


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(SdpipeWarning, match="2 frames") as caught:
        assert read_image(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)
    assert caught[0].filename == __file__


def test_a_difference_is_that_of_numpy():
    a, b = ramp("RGB"), ramp("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert compare_pixels(a, a) == Difference(0, 0.0, None)
    assert str(compare_pixels(a, a)) == "no value differs"
    apart = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    found = compare_pixels(a, b)
    assert found.largest == abs(apart).max()
    assert found.mean == pytest.approx(abs(apart).mean())
    assert found.psnr == pytest.approx(10 * np.log10(255**2 / (apart**2).mean()))
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_pixels(a, Image.new("RGB", (9, 10)))
