"""The denoising loop: from noise to latents, one step at a time, under classifier-free guidance.

here          in the papers            what it is
x_t           x_t                      noisy latents at timestep t, (B, C, h, w)
x_in          -                        x_t brought to the variance that the U-Net was trained on
output        eps_theta(x_t, t, c)     the U-Net's output: the noise it sees in x_in, or v
x0            x^_0                     the clean latents that this output amounts to
alpha_bar     alpha_bar_t              share of the signal's variance in x_in, 1 is a picture
sigma         sqrt((1 - a_bar)/a_bar)  noise per unit of signal, 14.6 at the start of v1-4
g             s, or 1 + w              guidance scale
rescale       phi                      how much of its spread the guided output gets back
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from sdpipe.guidance import Guidance


@dataclass(frozen=True, eq=False)
class Step:
    """What one step of the loop leaves behind.

    index, total: this is step index of total, from 0; total counts the U-Net's evaluations.
    timestep, sigma: of the step's input; high is noisy. sigma_next is that of `latents`.
    latents: x_t after the step, (B, C, h, w), float32.
    x0: the clean latents that this step predicts, (B, C, h, w), float32.
    variance_exploding: `latents` are x_0 + sigma_next * noise, so they grow with sigma; else they
        keep about unit variance.
    hires: of the second pass, whose latents are larger; index and total count both.
    """

    index: int
    total: int
    timestep: float
    sigma: float
    sigma_next: float
    latents: Tensor
    x0: Tensor
    variance_exploding: bool
    hires: bool = False


@torch.no_grad()
def denoise(
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    x_t: Tensor,
    cond: Tensor | Sequence[Tensor],
    uncond: Tensor | Sequence[Tensor],
    g: float | Guidance,
    generators: Sequence[torch.Generator] = (),
    keep: Callable[[Tensor, float], Tensor] | None = None,
) -> Iterator[Step]:
    """Denoises x_t and yields a `Step` after each of the scheduler's timesteps.

    `scheduler` has its timesteps set, and `x_t` (B, C, h, w), float32, is noise times its
    `init_noise_sigma`, or a picture with noise of `noise_levels(scheduler)[0]`. `cond` and `uncond`
    (B, L, D) are the embedded prompts and negative prompts; a sequence of them takes turns, each
    for an equal share of the timesteps. `g` is the guidance scale, or whatever more there is to it.
    `generators`, one a picture, supply the noise that some schedulers add on the way.
    `keep`, of x_t and its sigma, has the last word on what a step leaves: there a picture that is
    only redrawn in part puts the rest of it back.
    Ho et al. (2020), algorithm 2, with the scheduler's rule for the step.
    """
    timesteps = scheduler.timesteps[first_step(scheduler) :]
    times, sigmas = timesteps.tolist(), noise_levels(scheduler)
    exploding = variance_exploding(scheduler)
    noise: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        noise["generator"] = list(generators) or None

    guidance = g if isinstance(g, Guidance) else Guidance(g)
    dtype = unet.dtype  # asked once: diffusers looks through all weights for it
    conds, unconds = (spread(text, len(timesteps), dtype) for text in (cond, uncond))
    for i, t in enumerate(timesteps):
        x_in = scheduler.scale_model_input(x_t, t)  # (B, C, h, w)
        g_t = guidance.at(i, len(timesteps), sigmas[i])
        output = guided(unet, x_in, t, conds[i], unconds[i], g_t, guidance.rescale)
        x0 = clean_latents(x_in, output, sigmas[i], scheduler.config.prediction_type)
        x_t = scheduler.step(output, t, x_t, **noise).prev_sample
        if keep is not None:
            x_t = keep(x_t, sigmas[i + 1] if i + 1 < len(timesteps) else 0)
        yield Step(i, len(timesteps), float(times[i]), sigmas[i], sigmas[i + 1], x_t, x0, exploding)


def spread(text: Tensor | Sequence[Tensor], total: int, dtype: torch.dtype) -> list[Tensor]:
    """One embedding for each of `total` calls of the U-Net, in its type.

    Where there is one for each step of a scheduler that calls it more often, as Heun's, the calls
    of a step have the same.
    """
    each = [y.to(dtype) for y in ([text] if isinstance(text, Tensor) else text)]
    return [each[i * len(each) // total] for i in range(total)]


def guided(
    unet: UNet2DConditionModel,
    x_in: Tensor,
    t: Tensor,
    cond: Tensor,
    uncond: Tensor,
    g: float,
    rescale: float = 0.0,
) -> Tensor:
    """The U-Net's output under classifier-free guidance, (B, C, h, w), float32.

        output = output(uncond) + g * (output(cond) - output(uncond))

    Ho and Salimans (2022), equation 6 with g = 1 + w. Both come from one call on a batch of
    [uncond, cond]; g = 1 and g = 0 are one of the two, for half the work, and never rescaled.
    """
    if g in (0, 1):
        return predict(unet, x_in, t, cond if g == 1 else uncond)
    both = predict(unet, torch.cat([x_in, x_in]), t, torch.cat([uncond, cond]))
    out_uncond, out_cond = both.chunk(2)
    output = out_uncond + g * (out_cond - out_uncond)
    return rescaled(output, out_cond, rescale) if rescale else output


def rescaled(output: Tensor, out_cond: Tensor, rescale: float) -> Tensor:
    """The guided output, brought back to the spread of the one under the prompt alone.

        output * (rescale * std(out_cond) / std(output) + 1 - rescale)

    A large g makes the output's numbers larger, and the picture too bright or burnt. Lin et al.
    (2023), equations 15 and 16, with phi = rescale; std is over the numbers of one picture.
    """
    std_cond, std_output = (out.std((1, 2, 3), keepdim=True) for out in (out_cond, output))
    return output * (rescale * std_cond / std_output + 1 - rescale)  # (B, C, h, w)


def predict(unet: UNet2DConditionModel, x_in: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """One call of the U-Net, in its own type, which `text` (B, L, D) has.

    The result is float32: the steps need the digits.
    """
    return unet(x_in.to(text.dtype), t, text).sample.float()


def clean_latents(x_in: Tensor, output: Tensor, sigma: float, prediction_type: str) -> Tensor:
    """The clean latents that an output of the U-Net amounts to.

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


def first_step(scheduler: SchedulerMixin) -> int:
    """Where among the scheduler's timesteps the run begins: 0, but for one from a picture."""
    return getattr(scheduler, "begin_index", None) or 0


def variance_exploding(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler's x_t is x_0 + sigma * noise, and not that at unit variance."""
    return float(scheduler.init_noise_sigma) > 1


def noise_levels(scheduler: SchedulerMixin) -> list[float]:
    """The sigma of every step's input, and of what the last step leaves: one more than steps."""
    if hasattr(scheduler, "sigmas"):
        return [float(sigma) for sigma in scheduler.sigmas[first_step(scheduler) :]]
    alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps.cpu()]
    alpha_bar = torch.cat([alpha_bar, scheduler.final_alpha_cumprod.view(1)])
    return [float(sigma) for sigma in ((1 - alpha_bar) / alpha_bar).sqrt()]


def join(steps: Sequence[Step]) -> Step:
    """The same step of several loops as one, their pictures side by side in the batch."""
    latents = torch.cat([step.latents for step in steps])
    return replace(steps[0], latents=latents, x0=torch.cat([step.x0 for step in steps]))
