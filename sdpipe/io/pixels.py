"""Images from files, which may come from anybody: opened, decoded, hashed and compared."""

import contextlib
import hashlib
import math
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from sdpipe.errors import SdpipeError, UsageError, warn
from sdpipe.io.files import FORMATS

WRITTEN = tuple(dict.fromkeys(FORMATS.values()))  # the formats that sdpipe writes
# What Pillow decodes by itself: no format that starts another program.
READABLE = (
    *("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF"),
    "WEBP",
)

MAX_FILE = 2**28  # bytes of a file that is opened
MAX_PIXELS = 90_000_000  # of an image that is decoded: 270 MB in memory


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
    path: str | os.PathLike[str], formats: tuple[str, ...] = WRITTEN
) -> Iterator[Image.Image]:
    """Opens an image file without decoding it; errors inside the block are translated, too.

    Raises:
        SdpipeError: the file is missing, of another format, damaged, or too large.
    """
    try:
        _check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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

    background: the colour behind transparent pixels. Of an animation the first frame is read.

    Raises:
        UsageError: the file is missing, not an image, damaged, or the image is too large.
    """
    Image.init()
    try:
        with open_image(path, tuple(n for n in READABLE if n in Image.OPEN)) as image:
            _check_size(path, image, max_pixels)
            image.load()
            frames = getattr(image, "n_frames", 1)
            upright = to_upright_rgb(image, background)
    except SdpipeError as error:
        remedy = error.remedy or "give another image"
        raise UsageError(error.value, error.rule, remedy) from error
    if frames > 1:
        warn(f"{path} has {frames} frames; only the first is used.")
    return upright


def to_upright_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Converts any image to RGB, rotated as its EXIF says, transparent pixels on `background`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # Pillow would clip values above 255
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales grey values: those of 16-bit integers by 255/65535, others from their own range."""
    import numpy as np

    levels = np.asarray(image).astype(np.float64)
    levels[~np.isfinite(levels)] = 0
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (levels.min(), levels.max())
    levels = (levels - low) / ((high - low) or 1) * 255
    return Image.fromarray(levels.round().astype(np.uint8))


def _check_file(path: str | os.PathLike[str]) -> None:
    """Refuses files that would block a reader, or fill the memory."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise SdpipeError(f"{path}", "cannot be read: it is a device or a pipe, not a file")
    if status.st_size > MAX_FILE:
        raise SdpipeError(
            f"{path}", f"cannot be read: it has {status.st_size} bytes, more than {MAX_FILE}"
        )


def _check_size(path: str | os.PathLike[str], image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise SdpipeError(
            f"{path}",
            f"has {width} x {height} pixels, more than {max_pixels / 1e6:g} million",
            "scale it down",
        )
