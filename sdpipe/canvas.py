"""What a run draws on: a picture taken from a person, brought to size, grown, and its mask.

    from sdpipe.canvas import lay, take

    init, mask = take("cat.png", "mask.png")
    canvas = lay(settings, init, mask)
    picture = canvas.keep(drawn)

A mask's white is redrawn and its black stays. Needs no torch.
"""

import os
from dataclasses import dataclass, field

from PIL import Image, ImageChops, ImageOps

from sdpipe.errors import UsageError
from sdpipe.init import PictureId
from sdpipe.io.pixels import pixels_sha256, read_image, to_upright_rgb
from sdpipe.settings import Settings

REDRAWN = 128  # what a mask has to have at least, of 255, for the U-Net to draw there
SEAM = 16  # pixels of the picture, beside what it grew by, that are redrawn too


@dataclass(frozen=True)
class Picture(PictureId):
    """A picture with its pixels: RGB, or L if it is a mask."""

    image: Image.Image = field(compare=False, repr=False)


Source = str | os.PathLike[str] | Image.Image | Picture


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture at the size of a run, RGB, and where it is redrawn, L; None is everywhere."""

    picture: Image.Image
    mask: Image.Image | None = None

    def keep(self, drawn: Image.Image) -> Image.Image:
        """What was drawn, with the picture's own pixels wherever the mask is black.

        A mask's greys blend the two.
        """
        return drawn if self.mask is None else Image.composite(drawn, self.picture, self.mask)


def take(init: Source | None, mask: Source | None = None) -> tuple[Picture | None, Picture | None]:
    """The pictures of a run, read and held against each other; one that was taken is let through.

    What is transparent lies on white, in a mask on black. A ~ before a path is your home.

    Raises:
        UsageError: one can't be read, there is a mask alone, it has another size, or no white.
    """
    if init is None:
        if mask is not None:
            raise UsageError("mask is the part of a picture to redraw; give the picture: init.")
        return None, None
    taken = _taken("init_image", init)
    if mask is None:
        return taken, None
    part = _taken("mask_image", mask)
    if part.image.size != taken.image.size:
        raise UsageError(
            f"the mask has {_size(part.image)} pixels and the picture {_size(taken.image)}; a mask "
            "has the size of its picture."
        )
    if not _has_white(part.image):
        raise UsageError(
            f"the mask has no white (the brightest of it is {part.image.getextrema()[1]} of 255), "
            "and what is white is redrawn; paint white what is to change."
        )
    return taken, part


def lay(settings: Settings, init: Picture | None, mask: Picture | None = None) -> Canvas | None:
    """Brings the pictures to the size of settings that are resolved; None where there are none.

    A mask that is all white is as good as none.

    Raises:
        UsageError: the mask's white is outside of what is left of the picture.
    """
    if init is None:
        return None
    assert settings.width is not None
    assert settings.height is not None
    left, top, right, bottom = settings.outpaint or (0, 0, 0, 0)
    size = (settings.width - left - right, settings.height - top - bottom)
    how = settings.fit or "crop"
    picture = _fitted(init.image, size, how, "white")
    part = None if mask is None else _fitted(mask.image, size, how, "black")
    if settings.outpaint is not None:
        picture = _grown(picture, settings.outpaint)
        part = _grown_mask(part or Image.new("L", size), settings.outpaint)
    if part is not None and not _has_white(part):
        raise UsageError(
            f"nothing white of the mask is left at {_size(part)} pixels with fit={how}; take "
            "another fit or size."
        )
    if part is not None and part.getextrema() == (255, 255):
        part = None
    return Canvas(picture, part)


def _taken(what: str, source: Source) -> Picture:
    if isinstance(source, Picture):
        return source
    name = ""
    paper = "black" if what == "mask_image" else "white"
    if isinstance(source, Image.Image):
        image = to_upright_rgb(source, paper)
    elif isinstance(source, str | os.PathLike) and os.fspath(source):
        source = os.path.expanduser(source)
        name = os.path.basename(os.fsencode(source)).decode("utf-8", "replace")
        image = read_image(source, paper)
    else:
        raise UsageError(
            f"{what}={source!r} is no picture; give a file's path or, in Python, a PIL image."
        )
    image = image.convert("L") if what == "mask_image" else image
    return Picture(name, pixels_sha256(image), image)


def _fitted(image: Image.Image, size: tuple[int, int], how: str, paper: str) -> Image.Image:
    """A picture brought to a size; one that has it already is the same bits."""
    if image.size == size:
        return image
    method = Image.Resampling.LANCZOS if image.mode == "RGB" else Image.Resampling.BILINEAR
    if how == "stretch":
        return image.resize(size, method)
    if how == "pad":
        return ImageOps.pad(image, size, method, color=paper)
    return ImageOps.fit(image, size, method)


def _grown(picture: Image.Image, by: tuple[int, int, int, int]) -> Image.Image:
    """A picture whose outermost pixels go on to all sides."""
    import numpy as np  # as long to import as all else that a refusal needs

    left, top, right, bottom = by
    around = ((top, bottom), (left, right), (0, 0))
    return Image.fromarray(np.pad(np.asarray(picture), around, mode="edge"))


def _grown_mask(mask: Image.Image, by: tuple[int, int, int, int]) -> Image.Image:
    """White all around, and fading out from there over `SEAM` pixels of the picture."""
    left, top, right, bottom = by
    width, height = mask.size
    across = Image.frombytes("L", (width, 1), _fading(width, left, right))
    down = Image.frombytes("L", (1, height), _fading(height, top, bottom))
    seam = ImageChops.lighter(across.resize(mask.size), down.resize(mask.size))
    grown = Image.new("L", (left + width + right, top + height + bottom), "white")
    grown.paste(ImageChops.lighter(mask, seam), (left, top))
    return grown


def _fading(length: int, before: int, after: int) -> bytes:
    """From white to black beside each of the two ends that grew: `length` levels."""
    seam = min(SEAM, length // 2)
    fall = bytes(round(k / (seam + 1) * 255) for k in range(seam, 0, -1))
    rest = bytes(length - 2 * seam)
    return (fall if before else bytes(seam)) + rest + (fall[::-1] if after else bytes(seam))


def _has_white(mask: Image.Image) -> bool:
    return float(mask.getextrema()[1]) >= REDRAWN  # type: ignore[arg-type]


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"
