"""Classifier-free guidance: two predictions, one formula, and its strength at each step.

Ho and Salimans (2022). A scale of 7.5 holds at every step; 12:4 goes from 12 at the first step to 4
at the last, linearly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from sdpipe.errors import warn
from sdpipe.values import Scale

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """The guidance of a run: scale, rescale and interval as in `Settings`."""

    g: Scale
    rescale: float = 0.0
    interval: tuple[float, float] | None = None

    def at(self, i: int, total: int, sigma: float) -> float:
        """The guidance scale of U-Net call i of `total`, from 0, whose input has noise `sigma`.

        Outside of the interval it is 1, the conditional prediction: Kynkäänniemi et al. (2024).
        """
        if not self.contains(sigma):
            return 1.0
        if not isinstance(self.g, tuple):
            return self.g
        if total == 1:
            return self.g[0]
        # In this order whole numbers stay exact: at 1 and 0 the work is half.
        return ((total - 1 - i) * self.g[0] + i * self.g[1]) / (total - 1)

    def contains(self, sigma: float) -> bool:
        """Whether sigma lies in the half-open interval (low, high]."""
        return self.interval is None or self.interval[0] < sigma <= self.interval[1]

    def last(self, count: int, total: int) -> Self:
        """The guidance of the last `count` of `total` steps."""
        if not isinstance(self.g, tuple):
            return self
        first = Guidance(self.g).at(max(0, total - count), total, sigma=0)
        return replace(self, g=(first, self.g[1]))


def predict_guided(
    unet: "UNet2DConditionModel",
    x_in: "Tensor",
    t: "Tensor",
    cond: "Tensor",
    uncond: "Tensor",
    g: float,
    rescale: float = 0.0,
) -> "Tensor":
    """The U-Net's output under classifier-free guidance, (B, C, h, w), float32.

        output = output(uncond) + g * (output(cond) - output(uncond))

    Ho and Salimans (2022), equation 6 with g = 1 + w. Both predictions come from one call on a
    batch of [uncond, cond]. g = 1 is the conditional prediction and g = 0 the unconditional one,
    each with half the work and never rescaled.
    """
    if g in (0, 1):
        return predict(unet, x_in, t, cond if g == 1 else uncond)
    import torch

    both = predict(unet, torch.cat([x_in, x_in]), t, torch.cat([uncond, cond]))
    out_uncond, out_cond = both.chunk(2)
    output = out_uncond + g * (out_cond - out_uncond)
    return rescale_noise_cfg(output, out_cond, rescale) if rescale else output


def predict(
    unet: "UNet2DConditionModel", x_in: "Tensor", t: "Tensor", embeds: "Tensor"
) -> "Tensor":
    """One call of the U-Net in the dtype of `embeds` (B, L, D), its output in float32.

    The scheduler needs the digits.
    """
    return unet(x_in.to(embeds.dtype), t, embeds).sample.float()


def rescale_noise_cfg(output: "Tensor", out_cond: "Tensor", rescale: float) -> "Tensor":
    """Brings the guided output back towards the spread of the conditional one, (B, C, h, w).

        output * (rescale * std(out_cond) / std(output) + 1 - rescale)

    A large g enlarges the output's numbers, and the image comes out too bright or burnt. Lin et
    al. (2023), equations 15 and 16, with phi = rescale; std is over the numbers of one image.
    """
    std_cond, std_output = (out.std((1, 2, 3), keepdim=True) for out in (out_cond, output))
    return output * (rescale * std_cond / std_output + 1 - rescale)


def warn_unguided(guidance: Guidance, sigmas: Sequence[float]) -> None:
    """Warns of an interval that contains none of a run's noise levels."""
    if guidance.interval is not None and not any(map(guidance.contains, sigmas)):
        low, high = guidance.interval
        warn(
            f"guidance_interval={low:g},{high:g} contains none of the run's noise levels, which "
            f"go from {sigmas[0]:.3g} down to {sigmas[-1]:.3g}: no step is guided, as with g 1."
        )
