"""Classifier-free guidance: two predictions, one formula, and its strength at each step.

Ho and Salimans (2022). A scale of 7.5 holds at every step; 12:4 goes from 12 at the first step to 4
at the last, linearly.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from sdpipe.errors import UsageError, warn
from sdpipe.values import leave_out

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import Tensor

Scale = float | tuple[float, float]
"""g: one number for all steps, or that of the first step and that of the last."""


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


def scale(text: str) -> Scale | str:
    """What g may be, out of "7.5" or "12:4"; the text itself where it is neither."""
    try:
        if ":" not in text:
            return float(text)
        first, last = text.split(":")
        return float(first), float(last)
    except ValueError:
        return text


def bounds(text: str) -> tuple[float, ...] | str:
    """The value of guidance_interval that "0.3,5" stands for; other texts stay as they are."""
    try:
        return tuple(float(sigma) for sigma in text.split(","))
    except ValueError:
        return text


def shown(g: Scale, digits: str = "g") -> str:
    """A scale as a person types it: 7.5, 12:4. `digits` is a number's format, "" all of them."""
    ends = g if isinstance(g, tuple) else (g,)
    return ":".join(f"{end:{digits}}".removesuffix(".0") for end in ends)


def check_scale(value: object) -> Scale:
    """A guidance scale, or that of the first step and that of the last.

    Raises:
        UsageError: it is no finite number, nor two of them.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str)
    ends: Sequence[Any] = value if several else (value,)  # type: ignore[assignment]
    fine = _are_numbers(ends) and len(ends) == (2 if several else 1)
    told = shown((ends[0], ends[1])) if fine and several else repr(value)[:80]
    remedy = leave_out(7.5)
    if not fine:
        raise UsageError(
            f"g={told} is not a number, nor a first and a last one, which are 12:4 on the command "
            f"line and (12, 4) in Python; {remedy}."
        )
    if not all(math.isfinite(end) for end in ends):
        raise UsageError(f"g={told} is not a finite number; {remedy}.")
    first, last = float(ends[0]), float(ends[-1])
    return first if first == last else (first, last)


def check_rescale(value: object) -> float:
    """How much of the guided output's spread goes back to that under the prompt alone.

    Raises:
        UsageError: it is no number from 0 to 1.
    """
    if not _are_numbers([value]):
        raise UsageError(f"guidance_rescale={value!r} is not a number; it is from 0, off, to 1.")
    if not 0 <= float(value) <= 1:  # type: ignore[arg-type]
        raise UsageError(
            f"guidance_rescale={value} is out of range: 0, which leaves the guided output as it "
            "is, to 1; 0.7 is a good one."
        )
    return float(value)  # type: ignore[arg-type]


def check_interval(value: object) -> tuple[float, float] | None:
    """The noise levels between which there is guidance: sigmas, the lower first.

    Raises:
        UsageError: they are not two finite numbers from 0, the second larger.
    """
    if value is None:
        return None
    told = repr(value)[:80]
    if isinstance(value, Sequence) and not isinstance(value, str) and _are_numbers(value):
        told = ",".join(f"{sigma:g}" for sigma in value)[:80]
        if len(value) == 2 and 0 <= value[0] < value[1] < math.inf:
            return float(value[0]), float(value[1])
    raise UsageError(
        f"guidance_interval={told} is not two noise levels, the lower one first and none "
        "below 0; give two sigmas such as 0.3,5: v1-4 goes from 14.6, noise, down to 0.03."
    )


def _are_numbers(values: Sequence[object]) -> bool:
    return all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values)
