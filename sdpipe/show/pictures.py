"""Pictures that a person hands over: any file that Pillow reads, brought to a model's size."""

import os
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from sdpipe.errors import UsageError

# What Pillow decodes by itself: no format that starts another program.
FORMATS = (
    *("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF"),
    "WEBP",
)


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file, RGB and the right way up; what is transparent lies on white.

    Raises:
        UsageError: there is no such file, it is no picture or a damaged one, or far too large.
    """
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = f"{(Image.MAX_IMAGE_PIXELS or 0) // 10**6} million"
        raise UsageError(
            f"{path} is larger than {most} pixels, far more than a model looks at; scale it down."
        ) from error
    except UnidentifiedImageError as error:
        raise UsageError(
            f"{path} is no picture that can be read; the formats are {', '.join(FORMATS)}."
        ) from error
    except OSError as error:
        reason = error.strerror or "it is damaged or cut short"
        raise UsageError(f"{path} cannot be read: {reason}; give another picture.") from error
    except Exception as error:  # damaged files trip Pillow's parsers up in every way there is
        raise UsageError(f"{path} is damaged ({error}); give another picture.") from error


def fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture in the wanted shape, scaled to width x height pixels."""
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow would clip what is above 255
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits: 16 whole ones keep their scale, others are stretched to their own."""
    import numpy as np

    levels = np.asarray(image).astype(np.float64)
    levels[~np.isfinite(levels)] = 0
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (levels.min(), levels.max())
    levels = (levels - low) / ((high - low) or 1) * 255
    return Image.fromarray(levels.round().astype(np.uint8))
