"""The texts in an image file: a PNG's text chunks, EXIF's UserComment and ImageDescription, XMP."""

import contextlib
import json
import os
from collections.abc import Collection
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import iTXt

from sdpipe.io.mark import PNG_XMP
from sdpipe.io.pixels import MAX_LENGTH, MAX_PIXELS, open_image

MAX_TEXT = 2**20  # characters of a text that is read; an image may come from anybody
IMAGE_DESCRIPTION, EXIF_IFD, USER_COMMENT = 0x010E, 0x8769, 0x9286
MARK = "sdpipe: "  # prefix that identifies an ImageDescription written by sdpipe


def read_texts(path: str | os.PathLike[str], wanted: Collection[str]) -> dict[str, str]:
    """The texts in an image, whichever program wrote them, by the names of a PNG's text chunks.

    EXIF's UserComment is "parameters", as A1111's web UI has it, and XMP is `PNG_XMP`. Texts may
    stand behind the pixels of a PNG; these are decoded only where none of the `wanted` texts is
    before them.

    Raises:
        SdpipeError: the image is missing or damaged.
    """
    with open_image(path) as image:
        found = _texts(image)
        width, height = image.size
        if (
            image.format == "PNG"
            and found.keys().isdisjoint(wanted)
            and width * height <= MAX_PIXELS
            and max(width, height) <= MAX_LENGTH
        ):
            image.load()
            found = _texts(image)
    return found


def _texts(image: Image.Image) -> dict[str, str]:
    found = {**_exif_texts(image), **_png_texts(image)}
    xmp = image.info.get("xmp")
    if isinstance(xmp, bytes) and len(xmp) <= MAX_TEXT:
        found.setdefault(PNG_XMP, xmp.decode("utf-8", "replace"))
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
    """EXIF's texts. ImageMagick writes EXIF as a PNG's text; Fooocus' is in the first directory."""
    if not {"exif", "Raw profile type exif"} & image.info.keys():
        return {}
    exif = image.getexif()
    found = {}
    comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT, exif.get(USER_COMMENT))
    text = _comment(comment) if isinstance(comment, bytes) else comment
    if isinstance(text, str) and text:
        found["parameters"] = text.rstrip("\0")
    description = exif.get(IMAGE_DESCRIPTION)
    if isinstance(description, str) and description.startswith(MARK):
        found["sdpipe"] = description.removeprefix(MARK).rstrip("\0")
    return found


def _comment(raw: bytes) -> str:
    """An EXIF UserComment: eight bytes name the encoding of the rest; some programs leave them out.

    The byte order of Unicode is not recorded; in most text the high bytes are zero. Under ASCII and
    under no name most programs write UTF-8.
    """
    code, body = raw[:8], raw[8:]
    match code:
        case b"UNICODE\0":
            bom = {b"\xfe\xff": "be", b"\xff\xfe": "le"}.get(body[:2])
            order = bom or ("be" if body[0::2].count(0) >= body[1::2].count(0) else "le")
            text = body.decode(f"utf-16-{order}", "replace").removeprefix("\ufeff")
        case b"JIS\0\0\0\0\0":
            text = body.decode("iso2022_jp", "replace")
        case _:
            is_named = code in (b"ASCII\0\0\0", bytes(8))
            text = (body if is_named else raw).decode("utf-8", "replace")
    return text.strip("\0")
