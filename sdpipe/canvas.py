"""The image that a run begins with: read, fitted to the run's size, extended, and masked.

    from sdpipe.canvas import load_images, prepare

    init, mask = load_images("cat.png", "mask.png")
    canvas = prepare(settings, init, mask)
    image = canvas.composite(drawn)

Where a mask is white the image is redrawn, where it is black it stays. Needs no torch.
"""

import os
from dataclasses import dataclass, field

from PIL import Image, ImageChops, ImageOps

from sdpipe.errors import UsageError
from sdpipe.io.pixels import pixels_sha256, read_image, to_upright_rgb
from sdpipe.settings import ImageRef, ResolvedSettings

MASK_THRESHOLD = 128  # of 255; a mask has to be at least this bright somewhere
SEAM = 16  # pixels beside an extended edge that are redrawn too


@dataclass(frozen=True)
class LoadedImage(ImageRef):
    """An image with its pixels: RGB, or L if it is a mask."""

    image: Image.Image = field(compare=False, repr=False)


Source = str | os.PathLike[str] | Image.Image | LoadedImage


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image at the size of a run, RGB, and the mask of what is redrawn, L; None is all of it."""

    image: Image.Image
    mask: Image.Image | None = None

    def composite(self, drawn: Image.Image) -> Image.Image:
        """What was drawn, with this image's own pixels where the mask is black; greys blend."""
        return drawn if self.mask is None else Image.composite(drawn, self.image, self.mask)


def load_images(
    init: Source | None, mask: Source | None = None
) -> tuple[LoadedImage | None, LoadedImage | None]:
    """Reads init and mask and checks that they fit each other; loaded images are passed on.

    Transparent pixels become white, in a mask black. A leading ~ in a path is the home folder.

    Raises:
        UsageError: one cannot be read, the mask has no image, another size, or nothing white.
    """
    if init is None:
        if mask is not None:
            raise UsageError("mask_image", "needs an image to mask", "give init_image")
        return None, None
    loaded = _load("init_image", init)
    if mask is None:
        return loaded, None
    loaded_mask = _load("mask_image", mask)
    if loaded_mask.image.size != loaded.image.size:
        raise UsageError(
            f"the mask of {_size(loaded_mask.image)} pixels",
            f"does not fit the image of {_size(loaded.image)}",
            "give a mask of the same size",
        )
    if not _has_white(loaded_mask.image):
        brightest = loaded_mask.image.getextrema()[1]
        raise UsageError(
            f"the mask, at most {brightest} of 255 bright,",
            "has no white, which marks what is redrawn",
            "paint white what is to change",
        )
    return loaded, loaded_mask


def prepare(
    settings: ResolvedSettings, init: LoadedImage | None, mask: LoadedImage | None = None
) -> Canvas | None:
    """Fits init and mask to the size of the run and extends them by outpaint; None without init.

    A mask that is white everywhere is left out.

    Raises:
        UsageError: fitting leaves nothing white of the mask.
    """
    if init is None:
        return None
    left, top, right, bottom = settings.outpaint or (0, 0, 0, 0)
    size = (settings.width - left - right, settings.height - top - bottom)
    fit = settings.fit or "crop"
    image = _fit(init.image, size, fit, "white")
    fitted_mask = None if mask is None else _fit(mask.image, size, fit, "black")
    if settings.outpaint is not None:
        image = _pad_edges(image, settings.outpaint)
        fitted_mask = _pad_mask(fitted_mask or Image.new("L", size), settings.outpaint)
    if fitted_mask is not None and not _has_white(fitted_mask):
        raise UsageError(
            f"fit={fit} to {_size(fitted_mask)} pixels",
            "leaves nothing white of the mask",
            "use another fit or size",
        )
    if fitted_mask is not None and fitted_mask.getextrema() == (255, 255):
        fitted_mask = None
    return Canvas(image, fitted_mask)


def _load(name: str, source: Source) -> LoadedImage:
    if isinstance(source, LoadedImage):
        return source
    file = ""
    is_mask = name == "mask_image"
    background = "black" if is_mask else "white"
    if isinstance(source, Image.Image):
        image = to_upright_rgb(source, name, background)
    elif isinstance(source, str | os.PathLike) and os.fspath(source):
        source = os.path.expanduser(source)
        file = os.path.basename(os.fsencode(source)).decode("utf-8", "replace")
        image = read_image(source, background)
    else:
        raise UsageError(
            f"{name}={source!r}"
            if isinstance(source, str)
            else f"{name}, of the type {type(source).__name__},",
            "is not an image",
            "give a file, or in Python a PIL image; Image.fromarray makes one of an array",
        )
    if 0 in image.size:
        raise UsageError(f"{name} of {_size(image)} pixels", "is empty", "give another image")
    image = image.convert("L") if is_mask else image
    return LoadedImage(file, pixels_sha256(image), image)


def _fit(image: Image.Image, size: tuple[int, int], fit: str, background: str) -> Image.Image:
    """Resizes an image; one of that size already stays as it is, bit for bit."""
    if image.size == size:
        return image
    method = Image.Resampling.LANCZOS if image.mode == "RGB" else Image.Resampling.BILINEAR
    if fit == "stretch":
        return image.resize(size, method)
    if fit == "pad":
        return ImageOps.pad(image, size, method, color=background)
    return ImageOps.fit(image, size, method)


def _pad_edges(image: Image.Image, outpaint: tuple[int, int, int, int]) -> Image.Image:
    """Extends an image by repeating its outermost pixels."""
    import numpy as np  # as slow to import as everything else that a refusal needs

    left, top, right, bottom = outpaint
    widths = ((top, bottom), (left, right), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), widths, mode="edge"))


def _pad_mask(mask: Image.Image, outpaint: tuple[int, int, int, int]) -> Image.Image:
    """Extends a mask with white, which fades out over `SEAM` pixels inside of the old edge."""
    left, top, right, bottom = outpaint
    width, height = mask.size
    across = Image.frombytes("L", (width, 1), _fade(width, left, right))
    down = Image.frombytes("L", (1, height), _fade(height, top, bottom))
    seam = ImageChops.lighter(across.resize(mask.size), down.resize(mask.size))
    padded = Image.new("L", (left + width + right, top + height + bottom), "white")
    padded.paste(ImageChops.lighter(mask, seam), (left, top))
    return padded


def _fade(length: int, before: int, after: int) -> bytes:
    """`length` levels, from white to black beside each of the two ends that are extended."""
    seam = min(SEAM, length // 2)
    fall = bytes(round(k / (seam + 1) * 255) for k in range(seam, 0, -1))
    middle = bytes(length - 2 * seam)
    return (fall if before else bytes(seam)) + middle + (fall[::-1] if after else bytes(seam))


def _has_white(mask: Image.Image) -> bool:
    return float(mask.getextrema()[1]) >= MASK_THRESHOLD  # type: ignore[arg-type]


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"
