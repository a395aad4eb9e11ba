"""The denoising loop: from noise to latents, one step at a time, under classifier-free guidance.

here          in the papers            what it is
x_t           x_t                      noisy latents at timestep t, (B, C, h, w)
x_in          -                        x_t brought to the variance that the U-Net was trained on
output        eps_theta(x_t, t, c)     the U-Net's output: the noise it sees in x_in, or v
x0            x^_0                     the clean latents that this output amounts to
alpha_bar     alpha_bar_t              the signal's share of the variance of x_in; 1 is an image
sigma         sqrt((1 - a_bar)/a_bar)  noise per unit of signal, 14.6 at the start of v1-4
g             s, or 1 + w              guidance scale
rescale       phi                      how far the output is brought back to the spread of cond
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from sdpipe.guidance import Guidance, predict_guided
from sdpipe.schedule import Schedule

if TYPE_CHECKING:
    from sdpipe.runtime.philox import Philox


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the loop.

    images: which images of the run this batch holds, by their numbers from 0: B of them.
    index, total: this is step `index` of `total`, from 0; total counts the calls of the U-Net.
    timestep, sigma: of the step's input; high is noisy. sigma_next is that of `latents`.
    input: x_t before the step, (B, C, h, w), float32; that of the first step is the starting noise.
    latents: x_t after the step, (B, C, h, w), float32.
    x0: the clean latents predicted at this step, (B, C, h, w), float32.
    variance_exploding: `latents` are x_0 + sigma_next * noise, so they grow with sigma; otherwise
        they keep about unit variance.
    hires: of the second pass, whose latents are larger; index and total count both passes.
    """

    images: range
    index: int
    total: int
    timestep: float
    sigma: float
    sigma_next: float
    input: Tensor
    latents: Tensor
    x0: Tensor
    variance_exploding: bool
    hires: bool = False

    @property
    def is_last(self) -> bool:
        """Whether `latents` are finished."""
        return self.index == self.total - 1

    def only(self, image: int) -> "Step":
        """The same step of one of its images, by its number in the run: B = 1."""
        k = self.images.index(image)
        part = {name: getattr(self, name)[k : k + 1] for name in ("input", "latents", "x0")}
        return replace(self, images=range(image, image + 1), **part)


@torch.no_grad()
def denoise(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin | Schedule,
    x_t: Tensor,
    cond: Tensor | Sequence[Tensor],
    uncond: Tensor | Sequence[Tensor],
    g: float | Guidance,
    generators: "Sequence[torch.Generator | Philox]" = (),
    constraint: Callable[[Tensor, float], Tensor] | None = None,
) -> Iterator[Step]:
    """Denoises x_t and yields a `Step` after each of the scheduler's timesteps.

    Ho et al. (2020), algorithm 2, with the scheduler's rule for the step.

    scheduler: diffusers' own, its timesteps set, or a `Schedule`.
    x_t: (B, C, h, w), float32: noise times `init_noise_sigma`, or an image with noise of the
        schedule's first sigma.
    cond, uncond: embeddings of the prompts and negative prompts, (B, L, D). A sequence of them
        takes turns, each for an equal share of the timesteps.
    g: the guidance scale, or a `Guidance` (scale schedule, rescale, interval).
    generators: one an image, for the noise that some schedulers add.
    constraint: `constraint(x_t, sigma)` is applied after every step; inpainting uses it to restore
        the unmasked region.
    """
    schedule = Schedule.of(scheduler)
    guidance = g if isinstance(g, Guidance) else Guidance(g)
    total, sigmas = len(schedule), schedule.sigmas
    times = schedule.timesteps.tolist()  # copied from the device once
    dtype = unet.dtype  # asked once: diffusers looks through all weights for it
    conds, unconds = (embeds_per_step(embeds, total, dtype) for embeds in (cond, uncond))
    for i, t in enumerate(schedule.timesteps):
        x_in = schedule.scale_input(x_t, i)  # (B, C, h, w)
        g_t = guidance.at(i, total, sigmas[i])
        output = predict_guided(unet, x_in, t, conds[i], unconds[i], g_t, guidance.rescale)
        x0 = predict_x0(x_in, output, sigmas[i], schedule.prediction_type)
        before, x_t = x_t, schedule.step(output, i, x_t, generators)
        if constraint is not None:
            x_t = constraint(x_t, sigmas[i + 1] if i + 1 < total else 0)
        yield Step(
            range(len(x_t)),
            i,
            total,
            float(times[i]),
            sigmas[i],
            sigmas[i + 1],
            before,
            x_t,
            x0,
            schedule.variance_exploding,
        )


def embeds_per_step(
    embeds: Tensor | Sequence[Tensor], total: int, dtype: torch.dtype
) -> list[Tensor]:
    """One embedding (B, L, D) for each of `total` calls of the U-Net, in its dtype.

    A scheduler that calls the U-Net several times a step, as Heun's does, has the same embedding
    for all calls of a step.
    """
    tensors = [y.to(dtype) for y in ([embeds] if isinstance(embeds, Tensor) else embeds)]
    return [tensors[i * len(tensors) // total] for i in range(total)]


def predict_x0(x_in: Tensor, output: Tensor, sigma: float | Tensor, prediction_type: str) -> Tensor:
    """The clean latents that an output of the U-Net stands for, (B, C, h, w).

    From x_in = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps (Ho et al. 2020, equation 4), or, for
    a U-Net that predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0, from that (Salimans
    and Ho 2022, appendix D). alpha_bar = 1 / (1 + sigma^2), also between two training timesteps.
    """
    alpha_bar = 1 / (1 + sigma**2)
    signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    match prediction_type:
        case "epsilon":
            return (x_in - noise * output) / signal
        case "v_prediction":
            return signal * x_in - noise * output
        case _:  # "sample": the output is the clean latents
            return output
