"""How strong classifier-free guidance is at each step, and how that is asked for and written.

7.5 is the same at every step; 12:4 goes from 12 at the first step to 4 at the last, in equal parts.
Only numbers and words: what is done with them to the U-Net's output is in `sdpipe.denoise`.
"""

import math
import numbers
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from sdpipe.errors import SdpipeWarning, UsageError
from sdpipe.values import leave_out

Scale = float | tuple[float, float]
"""g: one number for all steps, or that of the first step and that of the last."""


@dataclass(frozen=True)
class Guidance:
    """The guidance of a run; the meaning of its parts is that of `Settings`."""

    g: Scale
    rescale: float = 0.0
    interval: tuple[float, float] | None = None

    def at(self, i: int, total: int, sigma: float) -> float:
        """The guidance scale of call `i` of `total` of the U-Net, from 0, with input at `sigma`.

        Outside of the interval it is 1: the prompt alone, as Kynkäänniemi et al. (2024) have it.
        """
        if not self.covers(sigma):
            return 1.0
        if not isinstance(self.g, tuple):
            return self.g
        if total == 1:
            return self.g[0]
        # In this order whole numbers stay exact: at 1 and 0 the work is half.
        return ((total - 1 - i) * self.g[0] + i * self.g[1]) / (total - 1)

    def covers(self, sigma: float) -> bool:
        """Whether a noise level is in the interval, of which its lower end is no part."""
        return self.interval is None or self.interval[0] < sigma <= self.interval[1]

    def last(self, some: int, total: int) -> Self:
        """The guidance of the last `some` of `total` steps, by themselves."""
        if not isinstance(self.g, tuple):
            return self
        first = Guidance(self.g).at(max(0, total - some), total, sigma=0)
        return replace(self, g=(first, self.g[1]))


def tell_unguided(guidance: Guidance, sigmas: Sequence[float], *, stacklevel: int) -> None:
    """Warns, with an `SdpipeWarning`, of an interval that none of a run's noise levels is in."""
    if guidance.interval is not None and not any(map(guidance.covers, sigmas)):
        low, high = guidance.interval
        warnings.warn(
            f"guidance_interval={low:g},{high:g} holds none of the run's noise levels, which "
            f"go from {sigmas[0]:.3g} down to {sigmas[-1]:.3g}: nothing is guided, as with g 1.",
            SdpipeWarning,
            stacklevel=stacklevel,
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
