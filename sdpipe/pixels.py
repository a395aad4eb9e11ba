"""The pixels of a picture that may come from anybody: opened, hashed, and held against others."""

import contextlib
import hashlib
import math
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageChops

from sdpipe.errors import SdpipeError
from sdpipe.files import FORMATS

MAX_FILE = 2**28  # bytes of a file that is opened
MAX_PIXELS = 2**26  # of a picture that is decoded: 8192 x 8192, 256 MiB in memory


@dataclass(frozen=True)
class Difference:
    """How far two pictures of one size are apart, over all their 8-bit values.

    largest: the largest difference of two values, 0 to 255.
    mean: the mean of all of them.
    psnr: peak signal-to-noise ratio, 10 log10(255^2 / mean square), in dB; None where they are
        the same. Two pictures with nothing in common have about 10.
    """

    largest: int
    mean: float
    psnr: float | None

    def __str__(self) -> str:
        if self.psnr is None:
            return "no value differs"
        return f"largest {self.largest} of 255, mean {self.mean:.3g}, PSNR {self.psnr:.1f} dB"


def difference(a: Image.Image, b: Image.Image) -> Difference:
    """Compares two pictures of the same size, as RGB.

    Raises:
        ValueError: their sizes differ.
    """
    if a.size != b.size:
        raise ValueError(f"pictures of {a.size} and {b.size} pixels cannot be compared")
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
    """The SHA-256 of a picture's RGB bytes, row by row: the same however the file is packed."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """A PNG, JPEG or WebP file, opened and not yet decoded, and whatever goes wrong in a sentence.

    Raises:
        SdpipeError: there is no such picture, it is damaged, or it is too large.
    """
    try:
        _check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
                yield image
    except SdpipeError:
        raise
    except Image.DecompressionBombError as error:
        raise SdpipeError(f"{path} cannot be read: it has too many pixels.") from error
    except OSError as error:
        reason = error.strerror or "it is no PNG, JPEG or WebP picture, or a damaged one"
        raise SdpipeError(f"{path} cannot be read: {reason}.") from error
    except MemoryError as error:
        raise SdpipeError(f"{path} cannot be read: it needs more memory than is here.") from error
    except Exception as error:  # damaged files trip Pillow's parsers up in every way there is
        raise SdpipeError(f"{path} cannot be read: it is damaged ({error}).") from error


def load_pixels(path: str | os.PathLike[str]) -> Image.Image:
    """The decoded pixels of a file, RGB; `format` keeps the file's.

    Raises:
        SdpipeError: as `opened`, or there are more than `MAX_PIXELS`.
    """
    with opened(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise SdpipeError(
                f"{path} has {width} x {height} pixels; pictures are decoded up to {MAX_PIXELS}."
            )
        pixels = image.convert("RGB")
        pixels.format = image.format
        return pixels


def _check_file(path: str | os.PathLike[str]) -> None:
    """Refuses what would keep a reader waiting, or fill the memory."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise SdpipeError(f"{path} cannot be read: it is a device or a pipe, not a file.")
    if found.st_size > MAX_FILE:
        raise SdpipeError(
            f"{path} cannot be read: it has {found.st_size} bytes; up to {MAX_FILE} are read."
        )
