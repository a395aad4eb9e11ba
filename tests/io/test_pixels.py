"""Images are opened whoever made them: read as RGB, or refused."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from support import profiles
from support.errors import raises

from sdpipe.errors import SdpipeError, SdpipeWarning, UsageError
from sdpipe.io.pixels import (
    Difference,
    compare_pixels,
    load_pixels,
    open_image,
    read_image,
    to_upright_rgb,
)


def ramp(mode, size=(40, 30)):
    grey = np.tile(np.linspace(0, 255, size[0]).round().astype(np.uint8), (size[1], 1))
    return Image.fromarray(grey).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("RGB", s) for s in ("png", "jpg", "webp", "bmp", "tiff", "gif", "ppm")),
        *(("L", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png")),
        *(("CMYK", "jpg"), ("I", "tiff")),
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


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.float32, [0.2, 0.5, 0.8], [51, 127.5, 204]),  # from 0 to 1, whatever is in the image
        (np.float64, [0.5, 0.5, 0.5], [127.5] * 3),
        (np.float32, [np.nan, 0.0, 1.0], [0, 0, 255]),
        (np.float32, [np.inf, 0.5, 1.0], [0, 127.5, 255]),
        (np.int32, [0, 255, 255], [0, 255, 255]),
        (np.int32, [0, 256, 256], [0, 1, 1]),
        (np.int32, [7, 7, 7], [7] * 3),  # 8 bits in 32
        (np.int32, [1000, 32768, 65535], [1000 / 257, 127.5, 255]),  # 16 bits in 32
        (np.int32, [2**30] * 3, [127.5] * 3),
        (np.uint16, [7, 32768, 65535], [0, 127.5, 255]),
    ],
)
def test_grey_values_keep_the_scale_of_their_type(tmp_path, dtype, values, expected):
    Image.fromarray(np.array([values], dtype)).save(tmp_path / "x.tif")
    shown = np.asarray(read_image(tmp_path / "x.tif"))[0, :, 0]
    assert abs(shown - np.array(expected)).max() <= 0.51


def test_unsigned_integers_of_32_bits_have_twice_the_range_of_signed_ones(tmp_path):
    Image.fromarray(np.full((4, 4), 2**30, np.int32)).save(tmp_path / "x.tif")
    signed = (tmp_path / "x.tif").read_bytes()
    entry = struct.Struct("<HHIHH")  # Pillow writes signed integers only: change the tag
    old = entry.pack(339, 3, 1, 2, 0)
    assert old in signed
    (tmp_path / "y.tif").write_bytes(signed.replace(old, entry.pack(339, 3, 1, 1, 0)))
    large = signed.replace(old, entry.pack(339, 3, 1, 1, 0)).replace(b"\0\0\0\x40", b"\0\0\0\xc0")
    (tmp_path / "z.tif").write_bytes(large)
    levels = [read_image(tmp_path / f"{n}.tif").getpixel((0, 0))[0] for n in "xyz"]
    assert levels == [128, 64, 191]


def test_floats_outside_of_0_to_1_are_cut_off_and_said(tmp_path):
    Image.fromarray(np.array([[-1, 0.5, 2]], np.float32)).save(tmp_path / "x.tif")
    with pytest.warns(SdpipeWarning, match="x.tif has values from -1 to 2: floating-point values"):
        shown = read_image(tmp_path / "x.tif")
    assert [shown.getpixel((i, 0))[0] for i in range(3)] == [0, 128, 255]
    for values in ([-1, 0.5, 1], [0, 0.5, 2]):
        Image.fromarray(np.array([values], np.float32)).save(tmp_path / "x.tif")
        with pytest.warns(SdpipeWarning, match="those beyond are cut off"):
            read_image(tmp_path / "x.tif")


def with_profile(image, profile, **options):
    """The image as a file of a format that keeps it."""
    file = io.BytesIO()
    form = "TIFF" if image.mode in ("CMYK", "LA") else "PNG"
    image.save(file, form, icc_profile=profile, **options)
    return Image.open(file)


def test_colours_are_brought_from_their_profile_to_srgb(tmp_path):
    values = np.random.default_rng(0).integers(30, 226, (40, 30, 3), np.uint8)
    expected = profiles.adobe_to_srgb(values)
    for suffix, options in (("png", {}), ("webp", {"lossless": True}), ("tiff", {})):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(values).save(path, icc_profile=profiles.adobe_rgb(), **options)
        assert abs(np.asarray(read_image(path)) - expected).max() < 1
    clear = Image.fromarray(values)
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    shown = to_upright_rgb(with_profile(clear, profiles.adobe_rgb()), "x", "black")
    assert abs(np.asarray(shown) - expected * np.asarray(clear)[..., 3:] / 255).max() < 1
    few = Image.fromarray(values).quantize(64)
    shown = to_upright_rgb(with_profile(few, profiles.adobe_rgb()), "x")
    assert abs(np.asarray(shown) - profiles.adobe_to_srgb(np.asarray(few.convert("RGB")))).max() < 1


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_is_brought_from_its_profile_to_srgb(mode):
    image = with_profile(Image.linear_gradient("L").convert(mode), profiles.grey(1.8))
    expected = profiles.encode_srgb((np.arange(256) / 255) ** 1.8)
    assert abs(np.asarray(to_upright_rgb(image, "x"))[:, 0, 1] - expected).max() < 2


def test_inks_have_the_colour_of_their_profile():
    profile = profiles.cmyk(paper=(255, 128, 128), inks=(0, 128, 128))  # any ink is black
    for inks, level in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 0), ((0, 255, 0, 0), 0)):
        image = with_profile(Image.new("CMYK", (4, 4), inks), profile)
        assert to_upright_rgb(image, "x").getpixel((0, 0)) == (level,) * 3


def test_a_profile_that_is_srgb_changes_no_bit():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for profile in (profiles.srgb(), profiles.srgb(round_to=2**-12)):
        assert to_upright_rgb(with_profile(noise, profile), "x").tobytes() == noise.tobytes()


@pytest.mark.parametrize("profile", [b"junk", profiles.grey(1.0), profiles.adobe_rgb()[:300]])
def test_a_profile_that_cannot_be_used_is_taken_as_srgb_and_said(profile):
    image = with_profile(Image.new("RGB", (4, 4), (200, 90, 20)), profile)
    with pytest.warns(SdpipeWarning, match="^init has a colour profile that cannot be used"):
        assert to_upright_rgb(image, "init").getpixel((0, 0)) == (200, 90, 20)


def test_lab_is_read():
    image = Image.new("LAB", (4, 4), (137, 128, 128))  # L = 53.7
    assert to_upright_rgb(image, "x").getpixel((0, 0)) == (128, 128, 128)


def test_what_an_image_says_of_itself_is_left_behind(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    notes = {"comment": "where I live", "exif": exif, "icc_profile": profiles.adobe_rgb()}
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", dpi=(300, 300), **notes)
    assert read_image(tmp_path / "x.jpg").info == {}
    assert not read_image(tmp_path / "x.jpg").getexif()


def test_the_previews_in_a_photo_are_passed_over(tmp_path):
    photo, preview = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (16, 12), "blue")
    photo.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[preview])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "x.jpg").getpixel((0, 0))[2] == 0


def test_an_image_that_is_closed_or_cut_short_is_refused(tmp_path):
    ramp("RGB", (300, 300)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    closed = Image.open(tmp_path / "whole.png")
    closed.close()
    with Image.open(tmp_path / "half.png") as half:
        for image, rule in ((closed, "closed image"), (half, "truncated")):
            with raises(UsageError, value="init_image", rule=rule, remedy="of a whole file"):
                to_upright_rgb(image, "init_image")


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
    for size, rule in ((2**28, "unknown format"), (2**28 + 1, "it has 268435457 bytes")):
        os.truncate(tmp_path / "large.png", size)
        with raises(SdpipeError, rule=rule), open_image(tmp_path / "large.png"):
            pass


def a_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize(
    ("suffix", "start", "piece", "most"),
    [
        ("png", 33, a_chunk(b"tEXt", b"a\0b"), 65536),
        ("jpg", 2, b"\xff\xe1\x00\x08Exif\0\0", 256),
        ("jpg", 2, b"\xff\xfe\x00\x02", 256),  # an empty comment
        ("jpg", 2, b"\xff", 256),  # a byte that fills up
    ],
)
def test_images_of_too_many_segments_are_refused(tmp_path, suffix, start, piece, most):
    path = tmp_path / f"x.{suffix}"
    ramp("RGB").save(path)
    data = path.read_bytes()
    before = load_pixels(path).tobytes()
    path.write_bytes(data[:start] + piece * (most - 20) + data[start:])
    assert load_pixels(path).tobytes() == before
    path.write_bytes(data[:start] + piece * (most + 1) + data[start:])
    with raises(SdpipeError, value=path.name, rule=f"more than {most} ", remedy="save it again"):
        load_pixels(path)


def test_a_progressive_image_of_too_many_scans_is_refused(tmp_path):
    path = tmp_path / "x.jpg"
    ramp("RGB").save(path, progressive=True)
    data = path.read_bytes()
    before = load_pixels(path).tobytes()
    last = data.rindex(b"\xff\xda")
    path.write_bytes(data + b"\xff\xda\0" * 99)  # what follows the image is not read
    assert load_pixels(path).tobytes() == before
    path.write_bytes(data[:-2] + data[last:-2] * 30 + data[-2:])
    with raises(SdpipeError, value="x.jpg", rule="more than 32 scans"):
        load_pixels(path)


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        ("gif", lambda data: data[:-1] + b"!\xfe\x01x\0" * 300 + b";"),
        ("gif", lambda data: data[:-1] + b"!\xfe" + b"\x01x" * 2**19 + b"\0;"),
        ("tif", lambda data: data[:8] + b"\x01\x01" + data[10:]),  # 257 tags
        ("tif", lambda _: b"MM\0+" + struct.pack(">HHQQ", 8, 0, 16, 257)),  # a BigTIFF
    ],
)
def test_other_images_of_too_many_parts_are_refused(tmp_path, suffix, change):
    path = tmp_path / f"x.{suffix}"
    Image.new("L", (8, 8)).save(path)
    assert read_image(path).size == (8, 8)
    path.write_bytes(change(path.read_bytes()))
    with raises(UsageError, value=path.name, rule="more than 256 segments"):
        read_image(path)


TOO_LONG = b"a" * (2**24 + 1)


def exif_of_a_long_value():
    """An EXIF whose second directory says that a value has 32 MiB."""
    first = struct.pack("<HHHIII", 1, 34665, 4, 1, 26, 0)
    return b"II*\0\x08\0\0\0" + first + struct.pack("<HHHIII", 1, 37510, 7, 2**25, 44, 0)


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        ("png", lambda data: data[:33] + a_chunk(b"eXIf", TOO_LONG) + data[33:]),
        ("tif", lambda _: exif_of_a_long_value()),
        ("ico", lambda data: data + TOO_LONG),
        ("webp", {"exif": b"Exif\0\0" + TOO_LONG}),
        ("webp", {"icc_profile": TOO_LONG}),
    ],
)
def test_images_with_notes_of_megabytes_are_refused(tmp_path, suffix, change):
    path = tmp_path / f"x.{suffix}"
    options = change if isinstance(change, dict) else {}
    Image.new("RGB", (16, 16)).save(path, **options)
    if not options:
        assert read_image(path).size == (16, 16)
        path.write_bytes(change(path.read_bytes()))
    with raises(UsageError, rule="16777216 bytes of notes", remedy="save it again without them"):
        read_image(path)


def test_a_file_whose_decoder_copies_it_is_shorter(tmp_path):
    path = tmp_path / "x.webp"
    Image.new("RGB", (16, 16)).save(path)
    os.truncate(path, 2**27)
    assert read_image(path).size == (16, 16)
    os.truncate(path, 2**27 + 1)
    with raises(UsageError, rule="134217729 bytes, more than 134217728", remedy="as PNG"):
        read_image(path)


def test_a_side_that_is_too_long_is_refused(tmp_path):
    Image.new("1", (1, 65537)).save(tmp_path / "x.png")
    with raises(UsageError, rule="1 x 65537 pixels, and a side has at most 65536"):
        read_image(tmp_path / "x.png")
    Image.new("1", (1, 65536)).save(tmp_path / "y.png")
    assert read_image(tmp_path / "y.png").size == (1, 65536)


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(SdpipeWarning, match="several frames") as caught:
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
