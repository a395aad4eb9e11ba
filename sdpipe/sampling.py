"""From noise to the finished latents of a batch: the middle of the way through sdpipe.

One pass as a rule. With `hires_scale` a second one goes over the enlarged image.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from sdpipe.canvas import Canvas
from sdpipe.components import Components
from sdpipe.denoise import Step, denoise
from sdpipe.errors import NotFiniteError, warn
from sdpipe.guidance import Guidance, warn_unguided
from sdpipe.latents import (
    draw_noise,
    interpolate_noise,
    latents_to_pil,
    make_generators,
    pil_to_latents,
    vae_factor,
)
from sdpipe.prompt.encode import PromptEmbeddings
from sdpipe.runtime.device import dtype_name
from sdpipe.schedule import CLASSES, Schedule, schedule_for
from sdpipe.settings import ResolvedSettings
from sdpipe.values import format_scale

if TYPE_CHECKING:
    from sdpipe.batches import Batch

CONFIG_KEYS = (
    *("rescale_betas_zero_snr", "use_exponential_sigmas", "use_beta_sigmas", "thresholding"),
)
"""Settings of a scheduler config that change the image and that some schedulers lack."""

MANY_STEPS, STRONG_G = 8, 2
"""Distilled models draw in that many steps and with that much guidance, at most."""

DIVERGED = 20.0
"""Standard deviations that latents of images never reach; those of a diverging solver do."""


def sample(
    parts: Components,
    unet: UNet2DConditionModel,
    batch: "Batch",
    embeds: PromptEmbeddings,
    canvas: Canvas | None = None,
) -> Iterator[Step]:
    """Draws a batch from noise to finished latents and yields every step.

    unet: what the loop calls: that of `parts`, or a faster one in its place.
    canvas: the image to begin with, if any.

    Raises:
        NotFiniteError: the latents of a pass hold NaN or infinity.
    """
    settings = batch.settings[0]
    first = embeds.first(settings.num_steps_taken(settings.strength))
    steps = sample_pass(parts, unet, batch, first, settings.strength, canvas)
    if settings.hires_scale is not None:
        steps = _with_second_pass(parts, unet, batch, embeds, steps)
    for step in steps:
        if step.is_last:
            _check_latents(step.latents, settings, embeds, parts.dtype)
        yield replace(step, images=batch.images)


def sample_pass(
    parts: Components,
    unet: UNet2DConditionModel,
    batch: "Batch",
    embeds: PromptEmbeddings,
    strength: float | None,
    start: Canvas | Tensor | None = None,
) -> Iterator[Step]:
    """One pass: prepares the schedule, draws the noise, makes the first latents, denoises.

    strength: the share of the steps that is taken, the last ones; None is all.
    start: an image for all of the batch, or clean latents of each, (B, C, h, w); None is noise
        alone.
    """
    settings = batch.settings[0]
    schedule = schedule_for(settings, parts.scheduler_config, parts.device, strength)
    generators = make_generators([s.seed for s in batch.settings], settings.rng)
    eps = draw_noise(generators, _latent_shape(parts, settings, start))  # (B, C, h, w)
    if settings.variation_strength is not None:
        seeds = [s.variation_seed for s in batch.settings if s.variation_seed is not None]
        eps = interpolate_noise(eps, seeds, settings.variation_strength, settings.rng)
    eps = eps.to(parts.device)
    x_t, constraint = prepare_latents(parts, schedule, eps, start, masked_from_noise=strength == 1)
    guidance = Guidance(settings.g, settings.guidance_rescale, settings.guidance_interval)
    if isinstance(start, Tensor):  # the second pass repeats the last steps of the first
        total = settings.num_steps_taken(settings.strength)
        guidance = guidance.last(settings.num_steps_taken(strength), total)
    elif batch.images.start == 0:
        warn_unguided(guidance, schedule.sigmas[:-1])
        warn_dropped(settings.scheduler, parts.scheduler_config)
        warn_distilled(settings, parts.scheduler_config)
    with parts.on_device(parts.unet):
        yield from denoise(
            unet, schedule, x_t, embeds.cond, embeds.uncond, guidance, generators, constraint
        )


def warn_distilled(settings: ResolvedSettings, config: Mapping[str, Any]) -> None:
    """Warns of more steps or guidance than distilled models are made for, of lcm and SD-Turbo."""
    g = settings.g if isinstance(settings.g, tuple) else (settings.g,)
    is_turbo = config.get("timestep_spacing") == "trailing" and (
        config.get("_class_name") == "EulerDiscreteScheduler"
        and config.get("prediction_type", "epsilon") == "epsilon"
    )
    if settings.steps <= MANY_STEPS and max(g) <= STRONG_G:
        return
    found = f"and this run has {settings.steps} steps and g {format_scale(settings.g)}"
    if settings.scheduler == "lcm":
        warn(
            f"lcm is for distilled models, which draw in 1 to {MANY_STEPS} steps with a g of 1 to "
            f"{STRONG_G}, {found}. Hint: try steps 4 and g 1, or another scheduler if the model "
            "is not distilled."
        )
    elif settings.scheduler == "euler" and is_turbo:
        warn(
            "the model's scheduler is Euler's with trailing steps, as SD-Turbo's is, which draws "
            f"in 1 to 4 steps with g 1, {found}. Hint: if it is such a model, try steps 1 and g 1."
        )


def warn_dropped(scheduler: str, config: Mapping[str, Any]) -> None:
    """Warns of settings of a model's scheduler config that a scheduler of ours does not have."""
    has = {name: signature(kind.__init__).parameters for name, kind in CLASSES.items()}
    for key in CONFIG_KEYS:
        if config.get(key) and key not in has[scheduler]:
            others = ", ".join(name for name in has if key in has[name])
            warn(
                f"the model's scheduler config has {key}, which {scheduler} does not know; the "
                f"image is another than with {others}, which do."
            )


def prepare_latents(
    parts: Components,
    schedule: Schedule,
    eps: Tensor,
    start: Canvas | Tensor | None,
    *,
    masked_from_noise: bool = False,
) -> tuple[Tensor, Callable[[Tensor, float], Tensor] | None]:
    """The first latents (B, C, h, w) of a pass, and the constraint that a mask sets.

    eps: noise N(0, I), (B, C, h, w).
    masked_from_noise: what a mask redraws begins as noise alone.
    """
    sigma = schedule.sigmas[0]
    if start is None:
        return eps * schedule.init_noise_sigma, None
    if isinstance(start, Tensor):
        return schedule.noised(start, eps, sigma), None
    with parts.on_device(parts.vae):
        x_0 = pil_to_latents(parts.vae, start.image)  # (1, C, h, w)
    if start.mask is None:
        return schedule.noised(x_0, eps, sigma), None
    mask = latent_mask(start.mask, vae_factor(parts.vae)).to(x_0.device)
    constraint = partial(restore_unmasked, x_0=x_0, eps=eps, mask=mask, schedule=schedule)
    if masked_from_noise:
        return eps * schedule.init_noise_sigma, constraint
    return schedule.noised(x_0, eps, sigma), constraint


def restore_unmasked(
    x_t: Tensor, sigma: float, *, x_0: Tensor, eps: Tensor, mask: Tensor, schedule: Schedule
) -> Tensor:
    """x_t where `mask` is 1, and the known image with noise of level sigma where it is 0.

        x_t = mask * x_t + (1 - mask) * (x_0 and noise of sigma)

    Lugmayr et al. (2022), equation 8. x_0: the image's latents, (1, C, h, w). eps: the noise that
    the run began with, (B, C, h, w). mask: (1, 1, h, w).
    """
    return mask * x_t + (1 - mask) * schedule.noised(x_0, eps, sigma)


def latent_mask(mask: Image.Image, factor: int) -> Tensor:
    """A mask, L, as 1 for latents that are redrawn and 0 for those that stay, (1, 1, h, w).

    A latent covers factor x factor pixels; it is redrawn if any of them is at least half white.
    """
    white = np.asarray(mask) >= 128  # (H, W)
    h, w = white.shape[0] // factor, white.shape[1] // factor
    blocks = white.reshape(h, factor, w, factor).any(axis=(1, 3))
    return torch.from_numpy(blocks).float()[None, None]


def upscale_latents(vae: AutoencoderKL, latents: Tensor, size: tuple[int, int]) -> Tensor:
    """Clean latents (B, C, h, w) of the same images at `size`, width and height in pixels.

    Decodes, resizes with Lanczos' filter and encodes, one image at a time. Latents that are
    resized themselves (A1111's "Latent" upscaler) decode to a blur with a grid in it. To remove
    that takes a strength of half or more, which invents details; from pixels a third is enough.
    """
    images = (latents_to_pil(vae, z)[0] for z in latents.split(1))
    return torch.cat(
        [pil_to_latents(vae, image.resize(size, Image.Resampling.LANCZOS)) for image in images]
    )


def _with_second_pass(
    parts: Components,
    unet: UNet2DConditionModel,
    batch: "Batch",
    embeds: PromptEmbeddings,
    first: Iterator[Step],
) -> Iterator[Step]:
    """The steps of the first pass, then those of the second, over the enlarged images.

    The second pass repeats the last steps, with the prompt embeddings that they had before.
    """
    settings = batch.settings[0]
    strength = settings.hires_strength
    more = len(schedule_for(settings, parts.scheduler_config, parts.device, strength))
    for step in first:
        yield replace(step, total=step.total + more)
    _check_latents(step.latents, settings, embeds, parts.dtype)
    with parts.on_device(parts.vae):
        x_0 = upscale_latents(parts.vae, step.latents, settings.output_size)
    embeds = embeds.last(settings.num_steps_taken(strength))
    done = step.total
    for step in sample_pass(parts, unet, batch, embeds, strength, x_0):
        yield replace(step, index=done + step.index, total=done + more, hires=True)


def _latent_shape(
    parts: Components, settings: ResolvedSettings, start: Canvas | Tensor | None
) -> tuple[int, int, int]:
    """(C, h, w) of one image's latents."""
    channels, factor = parts.unet.config.in_channels, vae_factor(parts.vae)
    if isinstance(start, Tensor):
        return (channels, start.shape[2], start.shape[3])
    return (channels, settings.height // factor, settings.width // factor)


def _check_latents(
    latents: Tensor, settings: ResolvedSettings, embeds: PromptEmbeddings, dtype: torch.dtype
) -> None:
    """Refuses finished latents that are not finite, and warns of those of a diverged solver.

    Raises:
        NotFiniteError: there is NaN or infinity in them.
    """
    largest = float(latents.abs().max())  # NaN where there is one
    g = format_scale(settings.g, "g")
    if not largest < float("inf"):
        wider = (
            "" if dtype == torch.float32 else "another dtype (float32 has the widest range), or "
        )
        is_encoded = all(torch.isfinite(z).all() for z in (*embeds.cond, *embeds.uncond))
        raise NotFiniteError(
            f"the {'U-Net' if is_encoded else 'text encoder'}",
            f"produced NaN or infinity in {dtype_name(dtype)}",
            f"take {wider}a g below {g}",
        )
    if largest > DIVERGED:
        order = settings.lms_order or 1
        warn(
            f"the latents grew to {largest:.0f}, which no image's latents reach: the solver "
            f"diverged and the image is wrong. Take "
            f"{f'lms_order 1 (it was {order}), ' if order > 1 else ''}"
            f"a g below {g}, or more steps than {settings.steps}."
        )
