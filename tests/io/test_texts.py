"""Texts of other programs, where and as they write them."""

import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdpipe.io.mark import PNG_XMP, to_xmp
from sdpipe.io.texts import (
    EXIF_IFD,
    IMAGE_DESCRIPTION,
    MAX_TEXT,
    USER_COMMENT,
    parse_object,
    read_texts,
)

WANTED = ("parameters",)


def text_chunk(key, raw):
    data = b"tEXt" + key.encode() + b"\0" + raw
    return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


def png_with(path, *before, after=b"", **texts):
    """A PNG with text chunks as bytes, before and behind its pixels."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + b"".join(before) + whole[33:-12] + after + whole[-12:])
    return path


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("café, 日本".encode(), "café, 日本"),  # stable-diffusion.cpp
        ("café".encode("latin-1"), "café"),  # as PNG has it
        (b"cat", "cat"),
    ],
)
def test_utf8_where_png_wants_latin1(tmp_path, raw, text):
    path = png_with(tmp_path / "x.png", text_chunk("parameters", raw))
    assert read_texts(path, WANTED) == {"parameters": text}
    path = png_with(tmp_path / "y.png", after=text_chunk("parameters", raw))
    assert read_texts(path, WANTED) == {"parameters": text}


def test_international_text_is_taken_as_it_is(tmp_path):
    path = png_with(tmp_path / "x.png", parameters="Ã©, 日本")  # Pillow writes iTXt
    assert read_texts(path, WANTED) == {"parameters": "Ã©, 日本"}


def test_texts_behind_the_pixels_of_an_image_that_has_others_before(tmp_path):
    path = png_with(tmp_path / "x.png", Software="GIMP", after=text_chunk("parameters", b"cat"))
    assert read_texts(path, WANTED) == {"Software": "GIMP", "parameters": "cat"}


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0" + "a cat, 日本".encode("utf-16-be"), "a cat, 日本"),
        (b"UNICODE\0" + "a cat, Steps: 3".encode("utf-16-le"), "a cat, Steps: 3"),
        (b"ASCII\0\0\0a cat", "a cat"),
        (b"UNICODE\0" + "\ufeff日本".encode("utf-16-be"), "日本"),
        (b"UNICODE\0" + "\ufeff日本".encode("utf-16-le"), "日本"),
        (b"JIS\0\0\0\0\0" + "a cat, 日本".encode("iso2022_jp"), "a cat, 日本"),
        (b"ASCII\0\0\0" + "café".encode(), "café"),
        (b"", None),
        (b"UNICODE\0\x00", "\ufffd"),
        (b'{"mflux_version": "0.4"}', '{"mflux_version": "0.4"}'),
        (bytes(8) + b"a cat\0", "a cat"),
    ],
)
def test_comments_as_others_write_them(tmp_path, comment, text):
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
    exif[IMAGE_DESCRIPTION] = "a holiday"
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", exif=exif)
    assert read_texts(tmp_path / "x.jpg", WANTED) == ({} if text is None else {"parameters": text})


@pytest.mark.parametrize("suffix", ["png", "avif", "jpg", "webp"])
def test_exif_and_xmp_in_every_format(tmp_path, suffix):
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"ASCII\0\0\0a cat"
    xmp = to_xmp("trainedAlgorithmicMedia")
    more = {"pnginfo": PngInfo()} if suffix == "png" else {"xmp": xmp.encode()}
    if suffix == "png":
        more["pnginfo"].add_itxt(PNG_XMP, xmp)
    Image.new("RGB", (8, 8)).save(tmp_path / f"x.{suffix}", exif=exif.tobytes(), **more)
    assert read_texts(tmp_path / f"x.{suffix}", WANTED) == {"parameters": "a cat", PNG_XMP: xmp}


def test_a_comment_in_the_first_directory(tmp_path):
    """Fooocus writes it there."""
    exif = Image.Exif()
    exif[USER_COMMENT] = '{"prompt": "a cat"}'
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", exif=exif)
    assert read_texts(tmp_path / "x.jpg", WANTED) == {"parameters": '{"prompt": "a cat"}'}


def test_exif_as_imagemagick_writes_it_into_a_png(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"ASCII\0\0\0a cat"
    data = exif.tobytes()
    raw = f"\nexif\n{len(data):8}\n{data.hex()}\n"
    path = png_with(tmp_path / "x.png", **{"Raw profile type exif": raw})
    assert read_texts(path, WANTED)["parameters"] == "a cat"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "is not a JSON object"),
        ("{", "is not valid JSON"),
        ('{"a": NaN}', "is not valid JSON"),
        ('{"a": 1e999}', "is not valid JSON"),
        (r'{"a": "\ud800"}', "is not valid JSON"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ("{}" + " " * (MAX_TEXT - 1), "is longer than 1048576 characters"),
    ],
)
def test_what_is_no_json_object_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_object(text)


def test_an_object_of_any_letters_up_to_the_bound_is_read():
    assert parse_object('{"a": "日本"}' + " " * (MAX_TEXT - 11)) == {"a": "日本"}
