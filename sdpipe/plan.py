"""From the arguments of one call to the settings of every picture, held against the model."""

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from sdpipe.canvas import Picture, Source
from sdpipe.errors import SdpipeWarning, UsageError
from sdpipe.guidance import Scale
from sdpipe.init import size_for
from sdpipe.settings import ResolvedSettings, Settings
from sdpipe.values import neighbours


class Asked(TypedDict, total=False):
    """What a call may ask for beside the prompt: the fields of `Settings`, all of them optional.

    `init_image` and `mask_image` are here the pictures themselves, or their files.
    """

    negative_prompt: str
    g: Scale | None
    seed: int | None
    variation_strength: float | None
    variation_seed: int | None
    steps: int | None
    dim: int | None
    width: int | None
    height: int | None
    n: int
    save_int: bool
    scheduler: str | None
    lms_order: int | None
    karras: bool
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    hires_scale: float | None
    hires_strength: float | None
    seamless: str | None
    clip_skip: int
    batch_invariant: bool
    safety: str
    init_image: Source | None
    mask_image: Source | None
    strength: float | None
    fit: str | None
    outpaint: Sequence[int] | None


def check_names(asked: Asked) -> dict[str, Any]:
    """What was asked for, as a dict of one's own. Raises TypeError where a name is not known."""
    names = Asked.__annotations__
    for name in asked:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            remedy = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(names)}."
            raise TypeError(f"there is no setting {name!r}; {remedy}")
    return dict(asked)


def plan(
    prompt: str | Sequence[str],
    *,
    defaults: Mapping[str, Any],
    factor: int,
    layers: int,
    stands_in: bool = False,
    n: int = 1,
    **settings: Any,
) -> list[ResolvedSettings]:
    """The settings of every picture of a call, every default filled in.

    Each prompt is drawn n times; image k of the call shows prompt k // n and has seed + k, or of
    variations variation_seed + k. `defaults` are the model's own values, `factor` that of its
    VAE, `layers` those of its text encoder. A model that `stands_in` for one that can't be had
    draws in its own size, and a warning says so where another was asked for. A size that is left
    out follows from the picture to begin with, where `init_image` has its pixels.

    Raises:
        UsageError: a value breaks its rule, or the model's.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UsageError("prompt=[] is empty; give a string, or a list of at least one.")
    for text in prompts:
        Settings(prompt=text, n=n)
    whole = Settings(prompt=prompts[0], n=n * len(prompts), **settings)
    if stands_in:
        whole = _in_own_size(whole, defaults)
    if isinstance(picture := settings.get("init_image"), Picture):
        whole = _in_proportion(whole, picture, defaults, factor)
    run = whole.resolved(defaults)
    if run.clip_skip > layers:
        raise UsageError(
            f"clip_skip={run.clip_skip} is more than the {layers} layers of this model's text "
            f"encoder; take 1, the last, to {layers}, the first."
        )
    for name, side in (("width", run.width), ("height", run.height)):
        _check_side(name, side, factor)
    for name, side in zip(("width", "height"), run.output_size, strict=True):
        if run.hires_scale is not None and side % factor:
            raise UsageError(
                f"hires_scale={run.hires_scale:g} makes {side} of {name}={getattr(run, name)}, "
                f"which is not a multiple of {factor}, the factor of this model's VAE; take "
                "another factor."
            )
    return [replace(s, prompt=prompts[k // n]) for k, s in enumerate(run.per_image())]


def _in_own_size(settings: Settings, defaults: Mapping[str, Any]) -> Settings:
    own = (defaults["width"], defaults["height"])
    asked = (settings.width or own[0], settings.height or own[1])
    if asked != own:
        warnings.warn(
            f"{asked[0]} x {asked[1]} pixels were asked for, of a model that is not here; the "
            f"built-in model draws in its own size, {own[0]} x {own[1]}.",
            SdpipeWarning,
            stacklevel=4,
        )
    if settings.init_image is not None:
        return replace(settings, dim=None, width=None, height=None)
    return replace(settings, dim=None, width=own[0], height=own[1])


def _in_proportion(
    settings: Settings, picture: Picture, defaults: Mapping[str, Any], factor: int
) -> Settings:
    """The size of the finished picture, as far as it is left out, from that of `picture`."""
    left, top, right, bottom = settings.outpaint or (0, 0, 0, 0)
    width, height = size_for(
        picture.image.size,
        (defaults["width"], defaults["height"]),
        factor,
        settings.width and settings.width - left - right,
        settings.height and settings.height - top - bottom,
    )
    width, height = width + left + right, height + top + bottom
    return replace(settings, dim=None, width=width, height=height)


def _check_side(name: str, side: int, factor: int) -> None:
    if side % factor:
        raise UsageError(
            f"{name}={side} is not a multiple of {factor}, the factor of this model's VAE; take "
            f"{neighbours(side, factor)}."
        )


def check_seamless(settings: Settings, factor: int, levels: int) -> None:
    """Refuses sizes at which the edges of the U-Net's coarser levels do not meet.

    `settings` are resolved, `factor` is that of the VAE, `levels` how many the U-Net has, each half
    as fine as the one before.

    Raises:
        UsageError: width or height is not a multiple of the pixels of the coarsest level.
    """
    if settings.seamless is None:
        return
    coarsest = factor * 2 ** (levels - 1)
    first = (settings.width or 0, settings.height or 0)
    for size, with_hires in ((first, ""), (settings.output_size, " with hires_scale")):
        for axis, name, side in zip("xy", ("width", "height"), size, strict=True):
            if axis in settings.seamless and side % coarsest:
                raise UsageError(
                    f"{name}{with_hires}={side}",
                    f"is not a multiple of {coarsest}, so the edges would not meet in this model's "
                    "U-Net",
                    f"take {neighbours(side, coarsest)}",
                )
