"""From noise to the finished latents of a call: where each pass begins, and the loop that it takes.

One pass as a rule. With hires a second one goes over what the first has drawn, enlarged.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from sdpipe.canvas import Canvas
from sdpipe.components import Components
from sdpipe.denoise import Step, denoise, first_step, join, noise_levels, variance_exploding
from sdpipe.errors import NotFiniteError, SdpipeWarning
from sdpipe.guidance import Guidance, shown, tell_unguided
from sdpipe.latents import (
    draw_noise,
    enlarged,
    latent_mask,
    make_generators,
    noised,
    pil_to_latents,
    put_back,
    vae_factor,
    varied,
)
from sdpipe.prompt.encode import Conditioning
from sdpipe.runtime.device import dtype_name
from sdpipe.schedule import make_scheduler
from sdpipe.settings import ResolvedSettings

DIVERGED = 20.0
"""No picture's latents reach this many standard deviations; a solver that diverges does."""


@dataclass(frozen=True, eq=False)
class Passes:
    """A call that is planned, before its noise is drawn.

    unet: what the loop calls: that of `parts`, or a faster one in its place.
    run: the settings of every picture, alike but for prompts and seeds.
    texts: what the U-Net listens to, batch by batch; every batch has a loop of its own, and they go
        in step.
    canvas: the picture that it begins with, if any.
    """

    parts: Components
    unet: UNet2DConditionModel
    run: list[ResolvedSettings]
    texts: list[Conditioning]
    canvas: Canvas | None = None

    def steps(self) -> Iterator[tuple[Tensor, Step]]:
        """Every step, and before it the latents that it begins with, (B, C, h, w).

        The second pass begins with noise in the first one's picture, from where the loop goes its
        last steps once more. A step hears the text that it heard before.

        Raises:
            NotFiniteError: the first of two passes produced NaN or infinity.
        """
        first = self.run[0]
        x_t, loop = self._start(first.strength)
        if first.hires_strength is None:
            for step in loop:
                yield x_t, step
                x_t = step.latents
            return
        scheduler = self._scheduler(first.hires_strength)
        more = len(scheduler.timesteps[first_step(scheduler) :])
        for step in loop:
            yield x_t, replace(step, total=step.total + more)
            x_t = step.latents
        self.check(x_t)
        done = step.total
        with self.parts.on_device(self.parts.vae):
            x_0 = enlarged(self.parts.vae, x_t, first.output_size)
        again = [text.last(taken(first, first.hires_strength)) for text in self.texts]
        second = replace(self, texts=again, canvas=None)
        x_t, loop = second._start(first.hires_strength, x_0)
        for step in loop:
            yield x_t, replace(step, index=done + step.index, total=done + more, hires=True)
            x_t = step.latents

    def check(self, latents: Tensor) -> None:
        """Looks at finished latents, once, and says what went wrong and where.

        Raises:
            NotFiniteError: there is NaN or infinity in them.
        """
        largest = float(latents.abs().max())  # NaN where there is one
        settings = self.run[0]
        below = shown(settings.g)
        if not largest < float("inf"):
            embedded = (z for text in self.texts for z in (*text.cond, *text.uncond))
            fine = all(torch.isfinite(z).all() for z in embedded)
            dtype = dtype_name(self.parts.dtype)
            raise NotFiniteError(
                f"the {'U-Net' if fine else 'text encoder'} produced NaN or infinity in {dtype}; "
                f"take another dtype (float32 has the widest range), or a g below {below}."
            )
        if largest > DIVERGED:
            order = settings.lms_order or 1
            warnings.warn(
                f"the latents grew to {largest:.0f}, beyond what those of any picture reach: the "
                f"solver diverged and the picture is wrong. Take "
                f"{f'lms_order 1 (it was {order}), ' if order > 1 else ''}"
                f"a g below {below}, or more steps than {settings.steps}.",
                SdpipeWarning,
                stacklevel=3,
            )

    def _start(
        self, strength: float | None, x_0: Tensor | None = None
    ) -> tuple[Tensor, Iterator[Step]]:
        """The latents that a pass begins with, (B, C, h, w), and the loop for them.

        They are noise; or the canvas's picture with noise; or each picture has clean latents of its
        own, `x_0` (B, C, h, w).
        """
        parts, first = self.parts, self.run[0]
        factor = vae_factor(parts.vae)
        shape = (parts.unet.config.in_channels, first.height // factor, first.width // factor)
        if x_0 is not None:
            shape = (shape[0], *x_0.shape[2:])
        generators = make_generators(seeds(self.run))
        schedulers = [self._scheduler(strength) for _ in self.texts]
        eps = draw_noise(generators, shape)  # (B, C, h, w)
        if first.variation_strength is not None:
            others = [s.variation_seed for s in self.run if s.variation_seed is not None]
            eps = varied(eps, others, first.variation_strength)
        eps = eps.to(parts.device)
        x_t, keep = eps * float(schedulers[0].init_noise_sigma), None
        if self.canvas is not None:
            x_t, keep = self._begin_with(self.canvas, x_t, eps, schedulers[0], strength == 1)
        if x_0 is not None:
            exploding = variance_exploding(schedulers[0])
            x_t = noised(x_0, eps, noise_levels(schedulers[0])[0], exploding)

        guidance = Guidance(first.g, first.guidance_rescale, first.guidance_interval)
        if x_0 is None:
            tell_unguided(guidance, noise_levels(schedulers[0])[:-1], stacklevel=5)
        else:  # the last of the steps once more
            guidance = guidance.last(taken(first, strength), taken(first, first.strength))
        loops, begin = [], 0
        for scheduler, text in zip(schedulers, self.texts, strict=True):
            some = slice(begin, begin + len(text))
            own = None if keep is None else partial(keep, eps=eps[some])
            batch = (x_t[some], text.cond, text.uncond)
            loops.append(denoise(self.unet, scheduler, *batch, guidance, generators[some], own))
            begin = some.stop
        if len(loops) == 1:
            return x_t, self._working(loops[0])
        return x_t, self._working(join(steps) for steps in zip(*loops, strict=True))

    def _working(self, loop: Iterator[Step]) -> Iterator[Step]:
        """A loop, with the U-Net on the device for as long as it takes."""
        with self.parts.on_device(self.parts.unet):
            yield from loop

    def _begin_with(
        self, canvas: Canvas, x_t: Tensor, eps: Tensor, scheduler: SchedulerMixin, all_steps: bool
    ) -> tuple[Tensor, Callable[..., Tensor] | None]:
        """A picture with the noise `eps`, and, if it has a mask, what puts back the rest of it.

        A part of a picture that is drawn in all steps begins with `x_t`, nothing but noise.
        """
        vae = self.parts.vae
        with self.parts.on_device(vae):
            x_0 = pil_to_latents(vae, canvas.picture)  # (1, C, h, w)
        exploding = variance_exploding(scheduler)
        if canvas.mask is None or not all_steps:
            x_t = noised(x_0, eps, noise_levels(scheduler)[0], exploding)
        if canvas.mask is None:
            return x_t, None
        mask = latent_mask(canvas.mask, vae_factor(vae)).to(x_0.device)
        return x_t, partial(put_back, x_0=x_0, mask=mask, variance_exploding=exploding)

    def _scheduler(self, strength: float | None) -> SchedulerMixin:
        settings = self.run[0]
        return make_scheduler(
            settings.scheduler,
            self.parts.scheduler_config,
            settings.steps,
            skip=settings.steps - taken(settings, strength),
            device=self.parts.device,
            karras=settings.karras,
            lms_order=settings.lms_order,
        )


def taken(settings: ResolvedSettings, strength: float | None) -> int:
    """How many of the steps are taken: fewer from a picture than from noise."""
    return settings.num_steps_taken(strength)


def seeds(run: list[ResolvedSettings]) -> list[int]:
    """The seed of every picture; settings that are planned have one."""
    return [settings.seed for settings in run]
