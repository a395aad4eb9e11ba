"""The pixels of a picture that may come from anybody: opened, hashed, and held against others."""

import contextlib
import hashlib
import math
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from sdpipe.errors import SdpipeError, SdpipeWarning, UsageError
from sdpipe.io.files import FORMATS

# What Pillow decodes by itself: no format that starts another program.
READABLE = (
    *("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF"),
    "WEBP",
)

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


def read_picture(path: str | os.PathLike[str], paper: str = "white") -> Image.Image:
    """A picture that a person hands over, in any format that Pillow reads: RGB, the right way up.

    What is transparent lies on a paper of that colour. Of an animation it is the first picture.

    Raises:
        UsageError: there is no such file, it is no picture or a damaged one, or far too large.
    """
    Image.init()
    try:
        _check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=[f for f in READABLE if f in Image.OPEN]) as image:
                image.load()
                frames = getattr(image, "n_frames", 1)
                picture = upright(image, paper)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = f"{(Image.MAX_IMAGE_PIXELS or 0) // 10**6} million"
        raise UsageError(
            f"{path} is larger than {most} pixels, far more than a model looks at; scale it down."
        ) from error
    except SdpipeError as error:
        raise UsageError(f"{str(error).rstrip('.')}; give another picture.") from error
    except UnidentifiedImageError as error:
        raise UsageError(
            f"{path} is no picture that can be read; the formats are {', '.join(READABLE)}."
        ) from error
    except OSError as error:
        reason = error.strerror or "it is damaged or cut short"
        raise UsageError(f"{path} cannot be read: {reason}; give another picture.") from error
    except Exception as error:  # damaged files trip Pillow's parsers up in every way there is
        raise UsageError(f"{path} is damaged ({error}); give another picture.") from error
    if frames > 1:
        warnings.warn(
            f"{path} has {frames} pictures in it; the first is taken.", SdpipeWarning, stacklevel=2
        )
    return picture


def upright(image: Image.Image, paper: str = "white") -> Image.Image:
    """Any picture as RGB, turned as its EXIF says; what is transparent lies on `paper`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # Pillow would clip what is above 255
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, paper), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits: 16 whole ones keep their scale, others are stretched to their own."""
    import numpy as np

    levels = np.asarray(image).astype(np.float64)
    levels[~np.isfinite(levels)] = 0
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (levels.min(), levels.max())
    levels = (levels - low) / ((high - low) or 1) * 255
    return Image.fromarray(levels.round().astype(np.uint8))


def _check_file(path: str | os.PathLike[str]) -> None:
    """Refuses what would keep a reader waiting, or fill the memory."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise SdpipeError(f"{path} cannot be read: it is a device or a pipe, not a file.")
    if found.st_size > MAX_FILE:
        raise SdpipeError(
            f"{path} cannot be read: it has {found.st_size} bytes; up to {MAX_FILE} are read."
        )
