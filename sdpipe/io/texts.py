"""The texts in an image file: a PNG's text chunks, and EXIF's UserComment and ImageDescription."""

import contextlib
import json
import os
from collections.abc import Collection
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import iTXt

from sdpipe.io.pixels import MAX_LENGTH, MAX_PIXELS, open_image

MAX_TEXT = 2**20  # characters of a text that is read; an image may come from anybody
IMAGE_DESCRIPTION, EXIF_IFD, USER_COMMENT = 0x010E, 0x8769, 0x9286
MARK = "sdpipe: "  # prefix that identifies an ImageDescription written by sdpipe


def read_texts(path: str | os.PathLike[str], wanted: Collection[str]) -> dict[str, str]:
    """The texts in an image, whichever program wrote them, by the names of a PNG's text chunks.

    EXIF's UserComment is "parameters", as A1111's web UI has it. Texts may stand behind the pixels
    of a PNG; these are decoded only where none of the `wanted` texts is before them.

    Raises:
        SdpipeError: the image is missing or damaged.
    """
    with open_image(path) as image:
        found = {**_exif_texts(image), **_png_texts(image)}
        width, height = image.size
        if (
            image.format == "PNG"
            and found.keys().isdisjoint(wanted)
            and width * height <= MAX_PIXELS
            and max(width, height) <= MAX_LENGTH
        ):
            image.load()
            found = {**_exif_texts(image), **_png_texts(image)}
    return found


def parse_object(text: str) -> dict[str, Any]:
    """Parses a JSON object of at most `MAX_TEXT` characters.

    Raises:
        ValueError: it is none, or holds values that cannot be written as JSON again.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"is longer than {MAX_TEXT} characters")
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def _png_texts(image: Image.Image) -> dict[str, str]:
    """The text chunks. Some programs write UTF-8 where PNG wants Latin-1, as Pillow decodes it."""
    if image.format != "PNG":
        return {}
    texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    for key, text in texts.items():
        if not isinstance(text, iTXt):
            with contextlib.suppress(UnicodeError):
                texts[key] = text.encode("latin-1").decode()
    return texts


def _exif_texts(image: Image.Image) -> dict[str, str]:
    if "exif" not in image.info:
        return {}
    exif = image.getexif()
    found = {}
    comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT)
    if isinstance(comment, bytes) and (text := _comment(comment)):
        found["parameters"] = text
    description = exif.get(IMAGE_DESCRIPTION)
    if isinstance(description, str) and description.startswith(MARK):
        found["sdpipe"] = description.removeprefix(MARK).rstrip("\0")
    return found


def _comment(raw: bytes) -> str:
    """An EXIF UserComment: eight bytes name the encoding of the rest; some programs leave them out.

    The byte order of Unicode is not recorded; in most text the high bytes are zero.
    """
    code, body = raw[:8], raw[8:]
    if code == b"UNICODE\0":
        order = "be" if body[0::2].count(0) >= body[1::2].count(0) else "le"
        return body.decode(f"utf-16-{order}", "replace").removeprefix("\ufeff")
    if code.startswith(b"JIS\0"):
        return ""
    return (
        (body if code in (b"ASCII\0\0\0", bytes(8)) else raw).decode("utf-8", "replace").strip("\0")
    )
