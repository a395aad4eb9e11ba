"""What single values of the settings may be: whole numbers, sides, factors, shares."""

import numbers
import operator

from sdpipe.errors import UsageError

MAX_SIDE = 16384
MAX_HIRES = 4


def leave_out(v1_4: float) -> str:
    """The remedy for what a model has a value of its own for, which for v1-4 is this one."""
    return f"leave it out, and the model's own counts, which is {v1_4:g} for v1-4"


def check_whole(name: str, value: object, low: int, high: int, remedy: str = "") -> int:
    """`value` as an int between low and high, both included.

    Raises:
        UsageError: it is none.
    """
    tail = f"; {remedy}." if remedy else "."
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        rule = f"{name} is a whole number from {low} to {high}"
        raise UsageError(f"{name}={value!r} is not a whole number; {rule}{tail}") from None
    if not low <= number <= high:
        raise UsageError(f"{name}={number} is out of range: {low} to {high}{tail}")
    return number


def check_side(name: str, value: object) -> int:
    """A width or height in pixels: a multiple of 8, the factor of v1-4's VAE.

    Raises:
        UsageError: it is none.
    """
    side = check_whole(name, value, 8, MAX_SIDE, "multiples of 8, 512 for v1-4")
    if side % 8:
        below, above = side - side % 8, side - side % 8 + 8
        raise UsageError(
            f"{name}={side} is not a multiple of 8; the nearest are {below} and {above}."
        )
    return side


def check_hires(value: object) -> float:
    """The factor that a picture grows by before its second pass.

    Raises:
        UsageError: it is no number above 1, or above `MAX_HIRES`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(
            f"hires_scale={value!r} is not a number; it is above 1 and at most {MAX_HIRES}."
        )
    if not 1 < float(value) <= MAX_HIRES:
        raise UsageError(
            f"hires_scale={value} is out of range: a factor above 1, where nothing grows, and at "
            f"most {MAX_HIRES}; 2 doubles width and height."
        )
    return float(value)


def check_variation(value: object) -> float:
    """How far the noise goes over to another one.

    Raises:
        UsageError: it is no number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"variation_strength={value!r} is not a number; it is from 0 to 1.")
    if not 0 <= float(value) <= 1:
        raise UsageError(
            f"variation_strength={value} is out of range: 0, the seed's own picture, to 1, that of "
            "the variation seed."
        )
    return float(value)


def neighbours(side: int, factor: int) -> str:
    """The multiples of `factor` next to a number that is none, but for 0: "496 or 504"."""
    below = side - side % factor
    return " or ".join(str(s) for s in (below, below + factor) if s)
