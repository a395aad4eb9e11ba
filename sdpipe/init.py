"""What is said of the picture that a run begins with: which one it is, and what becomes of it.

Only words and numbers, for `Settings`; the pixels travel beside them, see `sdpipe.canvas`. Knows
nothing of torch, models or files.
"""

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdpipe.errors import UsageError

FITS = ("crop", "pad", "stretch")

STRENGTH = 0.8  # where nobody says one, as in diffusers' StableDiffusionImg2ImgPipeline,
STRENGTH_OF_A_PART = 1.0  # and in its StableDiffusionInpaintPipeline

ABOUT_IT = ("mask_image", "strength", "fit", "outpaint")
"""The settings that say something about `init_image`, and nothing without it."""


@dataclass(frozen=True)
class PictureId:
    """Which picture it is.

    name: of its file, for people to read; it is never opened because it stands here.
    sha256: of its pixels, see `pixels.pixels_sha256`, before they were brought to any size.
    """

    name: str
    sha256: str


def picture_id(what: str, value: object) -> PictureId | None:
    """An identity out of anything that has one; `what` is what messages call it.

    Raises:
        UsageError: it has none.
    """
    if value is None:
        return None
    if isinstance(value, PictureId):
        value = {"name": value.name, "sha256": value.sha256}
    if isinstance(value, Mapping) and set(value) == {"name", "sha256"}:
        name, sha256 = value["name"], value["sha256"]
        if isinstance(name, str) and re.fullmatch("[0-9a-f]{64}", str(sha256)):
            return PictureId(name, sha256)
    raise UsageError(
        f"{what}={str(value)[:80]!r} is not the name and the SHA-256 of a picture, and settings "
        "hold nothing else of one; the picture itself is for Pipeline.generate."
    )


def check_strength(value: object, steps: int | None, name: str = "strength") -> float | None:
    """How far back into noise the picture goes; of `steps` at least one has to be left.

    `name` is what messages call it.

    Raises:
        UsageError: it is no number above 0 and at most 1, or too small for the steps.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"{name}={value!r} is not a number; it is above 0 and at most 1.")
    if not 0 < float(value) <= 1:
        raise UsageError(
            f"{name}={value} is out of range: above 0, where the picture stays as it is, and at "
            "most 1, where next to nothing of it is left."
        )
    if steps is not None and not steps_taken(steps, float(value)):
        least = math.ceil(1000 / steps) / 1000
        raise UsageError(
            f"{name}={value} leaves no step of {steps} to take; the smallest that leaves one is "
            f"{least:g}, or take more steps."
        )
    return float(value)


def steps_taken(steps: int, strength: float) -> int:
    """How many of the steps are taken, the last ones; rounded down, as diffusers does."""
    return min(int(steps * strength), steps)


def check_outpaint(value: object) -> tuple[int, int, int, int] | None:
    """The pixels by which the picture grows: left, top, right, bottom.

    Raises:
        UsageError: they are not four multiples of 8 from 0, or all of them are 0.
    """
    if value is None:
        return None
    shown = repr(value)[:80]
    if isinstance(value, Sequence) and all(type(side) is int for side in value):
        shown = ",".join(map(str, value))[:80]
        if len(value) == 4:
            left, top, right, bottom = value
            if max(value) > 0 and all(side >= 0 and side % 8 == 0 for side in value):
                return left, top, right, bottom
    raise UsageError(
        f"outpaint={shown} is not four multiples of 8, one at least above 0 and none below; give "
        "the pixels to grow by on the left, top, right and bottom, such as 0,0,64,0."
    )


def sides(text: str) -> tuple[int, ...] | str:
    """What outpaint may be, out of "0,0,64,0"; the text itself where it has no such numbers."""
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError:
        return text


def size_for(
    picture: tuple[int, int],
    own: tuple[int, int],
    factor: int,
    width: int | None = None,
    height: int | None = None,
) -> tuple[int, int]:
    """The width and height, multiples of `factor`, at which a picture is drawn.

    The picture's own where the model can draw it: from half to twice the pixels of `own`, the size
    that the model was made for. Else as many pixels as that, in the picture's proportions. Where
    one of `width` and `height` is given, the other follows from it.
    """
    w, h = picture
    room = own[0] * own[1]
    scale = 1.0 if room / 2 <= w * h <= 2 * room else math.sqrt(room / (w * h))
    if width is not None or height is not None:
        scale = width / w if width is not None else (height or 0) / h

    def side(length: int) -> int:
        return max(factor, round(length * scale / factor) * factor)

    return width or side(w), height or side(h)
