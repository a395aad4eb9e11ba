"""Images from files, which may come from anybody: opened, decoded, hashed and compared."""

import contextlib
import hashlib
import io
import itertools
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from sdpipe.errors import SdpipeError, UsageError, warn
from sdpipe.io import limits
from sdpipe.io.names import FORMATS

if TYPE_CHECKING:
    from PIL import ImageCms

WITH_TEXTS = (*dict.fromkeys(FORMATS.values()), "AVIF")
"""The formats whose texts are read: those that sdpipe writes, and one that others make of them."""
LOSSY_FORMATS = ("JPEG", "AVIF")  # files that cannot hold the very pixels that were drawn
# What Pillow decodes by itself: no format that starts another program.
READABLE = (
    *("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF"),
    "WEBP",
)

SAMPLE_FORMAT = 339  # the tag of a TIFF: 1 for unsigned integers, 2 for signed ones, 3 for floats
MAX_PIXELS = 54_000_000  # of an image that is decoded, in any form: less than 1 GB in memory
ROWS = 256  # that are converted at a time
MAX_LENGTH = 2**16  # pixels of a side: Pillow has a pointer to each row


@dataclass(frozen=True)
class Difference:
    """The difference of two images of one size, over all their 8-bit values.

    largest: the largest difference of two values, 0 to 255.
    mean: the mean absolute difference.
    psnr: the peak signal-to-noise ratio, 10 log10(255^2 / mean square), in dB; None for identical
        images. Two unrelated images have about 10.
    """

    largest: int
    mean: float
    psnr: float | None

    def __str__(self) -> str:
        if self.psnr is None:
            return "no value differs"
        return f"largest {self.largest} of 255, mean {self.mean:.3g}, PSNR {self.psnr:.1f} dB"


def compare_pixels(a: Image.Image, b: Image.Image) -> Difference:
    """Compares two images of the same size, as RGB.

    Raises:
        ValueError: their sizes differ.
    """
    if a.size != b.size:
        raise ValueError(f"images of {a.size} and {b.size} pixels cannot be compared")
    counts = ImageChops.difference(a.convert("RGB"), b.convert("RGB")).histogram()
    levels = [(value, sum(counts[value::256])) for value in range(256)]  # over the three channels
    total = sum(count for _, count in levels)
    square = sum(value * value * count for value, count in levels) / total
    return Difference(
        largest=max(value for value, count in levels if count),
        mean=sum(value * count for value, count in levels) / total,
        psnr=10 * math.log10(255**2 / square) if square else None,
    )


def pixels_sha256(image: Image.Image) -> str:
    """The SHA-256 of an image's RGB bytes, row by row; it does not depend on the file format."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


@contextlib.contextmanager
def open_image(
    path: str | os.PathLike[str], formats: tuple[str, ...] = WITH_TEXTS
) -> Iterator[Image.Image]:
    """Opens an image file without decoding it; errors inside the block are translated, too.

    Raises:
        UsageError: there is no such file.
        SdpipeError: it is of another format, damaged, or too large.
    """
    try:
        limits.check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            limits.check_segments(path)
            with Image.open(path, formats=formats) as image:
                yield image
    except SdpipeError:
        raise
    except Image.DecompressionBombError as error:
        raise SdpipeError(f"{path}", "cannot be read: it has too many pixels") from error
    except UnidentifiedImageError as error:
        raise SdpipeError(
            f"{path}",
            "cannot be read: it is damaged, or in an unknown format",
            f"the formats are {', '.join(formats)}",
        ) from error
    except FileNotFoundError as error:
        raise UsageError(f"{path}", f"cannot be read: {error.strerror}") from error
    except OSError as error:
        reason = error.strerror or "it is damaged or cut short"
        raise SdpipeError(f"{path}", f"cannot be read: {reason}") from error
    except MemoryError as error:
        raise SdpipeError(f"{path}", "cannot be read: there is not enough memory") from error
    except Exception as error:  # damaged files trip Pillow's parsers up in every way there is
        raise SdpipeError(f"{path}", f"cannot be read: it is damaged ({error})") from error


def load_pixels(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image file as RGB; `format` of the result is the file's.

    Raises:
        SdpipeError: as `open_image`, or the image has more than `max_pixels`.
    """
    with open_image(path) as image:
        _check_size(path, image, max_pixels)
        pixels = image.convert("RGB")
        pixels.format = image.format
        return pixels


def read_image(
    path: str | os.PathLike[str], background: str = "white", max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Reads an image that a user names, in any of the `READABLE` formats: RGB, upright.

    See `to_upright_rgb`. Of an animation the first frame is read.

    Raises:
        UsageError: the file is missing, not an image, damaged, or the image is too large.
    """
    Image.init()
    try:
        with open_image(path, tuple(n for n in READABLE if n in Image.OPEN)) as image:
            _check_size(path, image, max_pixels)
            image.load()
            is_animated = getattr(image, "is_animated", False)  # n_frames may read the whole file
            is_photo = image.format == "MPO"  # what follows the first image is its preview
            upright, remarks = _to_upright_rgb(image, background)
    except SdpipeError as error:
        remedy = error.remedy or "give another image"
        raise UsageError(error.value, error.rule, remedy) from error
    if is_animated and not is_photo:
        remarks.append("has several frames; only the first is used")
    for remark in remarks:
        warn(f"{path} {remark}.")
    return upright


def to_upright_rgb(image: Image.Image, name: str, background: str = "white") -> Image.Image:
    """Converts any image to RGB: rotated as its EXIF says, in sRGB, without notes.

    name: how messages call it.
    background: the colour behind transparent pixels.

    Raises:
        UsageError: the image is closed, or its file is damaged or cut short.
    """
    try:
        upright, remarks = _to_upright_rgb(image, background)
    except Exception as error:  # of which class depends on the file's format
        remedy = "give an image that is open, of a whole file"
        raise UsageError(name, f"cannot be read: {error}", remedy) from error
    for remark in remarks:
        warn(f"{name} {remark}.")
    return upright


def _to_upright_rgb(image: Image.Image, background: str) -> tuple[Image.Image, list[str]]:
    """The image, and what is to be said of it."""
    remarks: list[str] = []
    file, profile = image, image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # Pillow would clip values above 255
        image = _to_8_bits(image, file, remarks)
    if profile or image.mode == "LAB":
        image = _to_srgb(image, profile, remarks)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    image = image.convert("RGB")
    image.info = {}  # Pillow would write its comment and its profile into the result
    return image, remarks


def _to_8_bits(image: Image.Image, file: Image.Image, remarks: list[str]) -> Image.Image:
    """Scales grey values from the range of their type; floats go from 0, black, to 1, white.

    32-bit integers often hold fewer bits: the range is the first of 8, 16 and 32 bits that has all
    values. Pillow reads unsigned ones as signed.
    """
    import numpy as np

    tags = getattr(file, "tag_v2", {SAMPLE_FORMAT: (2,)})
    is_signed = tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    width, height = image.size

    # Some at a time, for memory.
    def read_rows() -> "Iterator[np.ndarray[Any, np.dtype[np.float64]]]":
        for top in range(0, height, ROWS):
            rows = image.crop((0, top, width, min(top + ROWS, height)))
            levels = np.asarray(rows).astype(np.float64)
            levels[~np.isfinite(levels)] = 0
            if image.mode == "I" and not is_signed:
                levels[levels < 0] += 2**32
            yield levels

    lows, highs = zip(*((rows.min(), rows.max()) for rows in read_rows()), strict=True)
    low, high = min(lows), max(highs)
    if image.mode.startswith("F"):
        white = 1
        if low < 0 or high > 1:
            remarks.append(
                f"has values from {low:g} to {high:g}: floating-point values go from 0, black, to "
                "1, white, and those beyond are cut off"
            )
    elif image.mode == "I" and file.format in (None, "TIFF"):
        white = next(w for w in (2**8, 2**16, 2**31 if is_signed else 2**32) if high < w) - 1
    else:
        white = 2**16 - 1
    result = np.empty((height, width), np.uint8)
    for number, levels in enumerate(read_rows()):
        scaled = np.clip(levels / white, 0, 1) * 255
        result[number * ROWS : (number + 1) * ROWS] = scaled.round()
    return Image.fromarray(result)


def _to_srgb(image: Image.Image, profile: bytes | None, remarks: list[str]) -> Image.Image:
    """Converts colours from an ICC profile to sRGB, as RGB or RGBA.

    Relative colorimetric with black point compensation, as image editors do by default. A profile
    that is sRGB up to rounding changes nothing.
    """
    from PIL import ImageCms

    grey = image.mode in ("1", "L", "LA", "La")
    mode = image.mode if image.mode in ("CMYK", "LAB") else "L" if grey else "RGB"
    try:
        if mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
            if source.profile.xcolor_space.strip() == "RGB" and grey:
                mode = "RGB"
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        remarks.append("has a colour profile that cannot be used; it is taken as sRGB")
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    converted = image.convert(mode)
    if mode in ("CMYK", "LAB") or not _is_identity(transform, mode):
        converted = transform.apply(converted)
    converted = converted.convert("RGB")
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _is_identity(transform: "ImageCms.ImageCmsTransform", mode: str) -> bool:
    """Whether a transform of L or RGB to RGB changes no colour of a grid by more than 2 of 255."""
    levels = bytes(range(0, 256, 17))
    grid = bytes(x for colour in itertools.product(levels, repeat=len(mode)) for x in colour)
    before = Image.frombytes(mode, (len(levels), len(levels) ** (len(mode) - 1)), grid)
    after = transform.apply(before)
    return compare_pixels(before, after).largest <= 2


def _check_size(path: str | os.PathLike[str], image: Image.Image, max_pixels: int) -> None:
    (width, height), is_copied = image.size, image.format in limits.COPIED
    max_pixels = min(max_pixels, limits.MAX_COPIED) if is_copied else max_pixels
    rule, remedy = "", "scale it down"
    if width * height > max_pixels:
        rule = f"more than {max_pixels / 1e6:g} million"
    elif max(width, height) > MAX_LENGTH:
        rule = f"and a side has at most {MAX_LENGTH}"
    elif is_copied and (size := os.path.getsize(path)) > limits.MAX_COPIED_FILE:
        rule, remedy = f"and {size} bytes, more than {limits.MAX_COPIED_FILE}", "save it as PNG"
    elif sum(len(v) for v in image.info.values() if isinstance(v, bytes | str)) > limits.MAX_NOTES:
        rule, remedy = f"and {limits.NOTES_RULE}", limits.NOTES_REMEDY
    if rule:
        raise SdpipeError(f"{path}", f"has {width} x {height} pixels, {rule}", remedy)
