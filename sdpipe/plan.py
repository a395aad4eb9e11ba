"""From the arguments of one call to the settings of every image, checked against the model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdpipe.canvas import LoadedImage
from sdpipe.errors import UsageError
from sdpipe.settings import MAX_IMAGES, RULES, ResolvedSettings, Settings
from sdpipe.values import nearest_multiples


def plan(
    prompt: str | Sequence[str],
    *,
    defaults: Mapping[str, Any],
    factor: int,
    layers: int,
    read_prompt: Callable[[str], str] = str,
    n: int = 1,
    seed: int | Sequence[int] | None = None,
    **settings: Any,
) -> list[ResolvedSettings]:
    """The settings of every image of a call, with every default filled in.

    Each prompt is drawn n times; image k of the call shows prompt k // n and has seed + k, or of
    variations variation_seed + k. Of a list of seeds each prompt has an image of each. An unset
    size follows from `init_image`, if it has its pixels.

    defaults: the model's own values.
    factor: pixels per latent of the model's VAE.
    layers: of the model's text encoder.
    read_prompt: from a prompt as it was typed to what the model is told.

    Raises:
        UsageError: a value breaks its rule, or one of the model.
    """
    is_text = isinstance(prompt, str | bytes) or not isinstance(prompt, Sequence)
    prompts: list[Any] = [prompt] if is_text else list(prompt)
    if not prompts:
        raise UsageError("prompt=[]", "is empty", "give a string, or a list of at least one")
    seeds, first = None, seed
    if isinstance(seed, list | tuple):
        seeds = _check_seeds(seed, n, settings)
        first, n = seeds[0], len(seeds)
    for text in prompts:
        Settings(prompt=text, n=n)
    prompts = [read_prompt(text) for text in prompts]
    count = n * len(prompts) if seeds is None else 1  # of images whose seeds count up
    call = Settings(prompt=prompts[0], n=count, seed=first, **settings)  # type: ignore[arg-type]
    call = replace(call, dim=None, negative_prompt=read_prompt(call.negative_prompt))
    if isinstance(image := settings.get("init_image"), LoadedImage):
        call = _with_size_of(image, call, defaults, factor)
    run = call.resolved(defaults)
    if run.clip_skip > layers:
        raise UsageError(
            f"clip_skip={run.clip_skip}",
            f"is more than the {layers} layers of this model's text encoder",
            f"use 1, the last layer, to {layers}, the first",
        )
    for name, side in (("width", run.width), ("height", run.height)):
        if side % factor:
            raise UsageError(
                f"{name}={side}",
                f"is not a multiple of {factor}, the pixels per latent of this model's VAE",
                f"use {nearest_multiples(side, factor)}",
            )
    for name, side in zip(("width", "height"), run.output_size, strict=True):
        if run.hires_scale is not None and side % factor:
            raise UsageError(
                f"hires_scale={run.hires_scale:g}",
                f"makes {side} of {name}={getattr(run, name)}, which is not a multiple of "
                f"{factor}, the pixels per latent of this model's VAE",
                "use another factor",
            )
    if seeds is not None:
        return [replace(run, n=1, prompt=text, seed=s) for text in prompts for s in seeds]
    return [replace(s, prompt=prompts[k // n]) for k, s in enumerate(run.per_image())]


def _check_seeds(seeds: Sequence[Any], n: int, settings: Mapping[str, Any]) -> list[int]:
    """A list of seeds. Raises UsageError where one is none, or something else contradicts it."""
    if not seeds:
        raise UsageError("seed=[]", "is empty", "give at least one seed, or leave it out")
    if len(seeds) > MAX_IMAGES:
        raise UsageError(f"seed, a list of {len(seeds)}", f"has more than {MAX_IMAGES}")
    if n not in (1, len(seeds)):
        raise UsageError(f"n={n!r} with {len(seeds)} seeds", "contradict each other", "leave n out")
    for name in ("variation_seed", "variation_strength"):
        if settings.get(name) is not None:
            raise UsageError(name, "has one seed for all images", "give one, or leave it out")
    return [RULES["seed"].check("seed", seed) for seed in seeds]


def check_seamless(settings: ResolvedSettings, factor: int, levels: int) -> None:
    """Checks that the edges of the U-Net's coarser levels meet.

    factor: pixels per latent of the VAE.
    levels: of the U-Net, each half as fine as the one before.

    Raises:
        UsageError: width or height is not a multiple of the pixels of the coarsest level.
    """
    coarsest = factor * 2 ** (levels - 1)
    first = (settings.width, settings.height)
    for size, suffix in ((first, ""), (settings.output_size, " with hires_scale")):
        for axis, name, side in zip("xy", ("width", "height"), size, strict=True):
            if axis in (settings.seamless or "") and side % coarsest:
                raise UsageError(
                    f"{name}{suffix}={side}",
                    f"is not a multiple of {coarsest}, so that the edges would not meet in this "
                    "model's U-Net",
                    f"use {nearest_multiples(side, coarsest)}",
                )


def size_for(
    image: tuple[int, int],
    own: tuple[int, int],
    factor: int,
    width: int | None = None,
    height: int | None = None,
) -> tuple[int, int]:
    """The width and height, multiples of `factor`, at which an image is redrawn.

    The image's own size if the model can draw it: from half to twice the pixels of `own`, the size
    that the model was made for. Else as many pixels as that, in the image's proportions. Where one
    of `width` and `height` is given, the other follows from it.
    """
    w, h = image
    room = own[0] * own[1]
    scale = 1.0 if room / 2 <= w * h <= 2 * room else math.sqrt(room / (w * h))
    if width is not None or height is not None:
        scale = width / w if width is not None else (height or 0) / h

    def side(length: int) -> int:
        return max(factor, round(length * scale / factor) * factor)

    return width or side(w), height or side(h)


def _with_size_of(
    image: LoadedImage, settings: Settings, defaults: Mapping[str, Any], factor: int
) -> Settings:
    """Fills in the size of the finished image from that of `image`."""
    left, top, right, bottom = settings.outpaint or (0, 0, 0, 0)
    width, height = size_for(
        image.image.size,
        (defaults["width"], defaults["height"]),
        factor,
        settings.width and settings.width - left - right,
        settings.height and settings.height - top - bottom,
    )
    width, height = width + left + right, height + top + bottom
    return replace(settings, dim=None, width=width, height=height)
