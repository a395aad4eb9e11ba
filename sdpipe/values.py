"""Single values of settings: how each is parsed from text, checked, and written for people.

`parse_*` takes what a person typed and returns the text itself where it has no such value.
`check_*` takes a setting's name and a value, returns the value in its own type, and raises a
`UsageError` with the rule and the remedy. Needs no torch.
"""

import math
import numbers
import operator
import re
from collections.abc import Sequence
from typing import Any

from sdpipe.errors import UsageError

MAX_SIDE = 16384
YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

Scale = float | tuple[float, float]
"""A guidance scale: one for all steps, or that of the first step and that of the last."""


def parse_int(text: str) -> int | str:
    """The whole number in "20"."""
    try:
        return int(text)
    except ValueError:
        return text


def parse_number(text: str) -> float | str:
    """The number in "0.5"."""
    try:
        return float(text)
    except ValueError:
        return text


def parse_bool(text: str) -> bool | str:
    """True for "yes", "true" or "1", False for "no", "false" or "0"."""
    return YES_NO.get(text.lower(), text)


def parse_scale(text: str) -> Scale | str:
    """The guidance scale in "7.5", or the first and last one in "12:4"."""
    first, colon, last = text.partition(":")
    found = (parse_number(first), parse_number(last if colon else first))
    if isinstance(found[0], str) or isinstance(found[1], str):
        return text
    return (found[0], found[1]) if colon else found[0]


def parse_interval(text: str) -> tuple[float, ...] | str:
    """The noise levels in "0.3,5"."""
    try:
        return tuple(float(sigma) for sigma in text.split(","))
    except ValueError:
        return text


def parse_outpaint(text: str) -> tuple[int, ...] | str:
    """The pixels in "0,0,64,0"."""
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError:
        return text


def format_value(value: object) -> str:
    """A value as a person types it: 7.5, 20, euler, yes, 0.3,5."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(map(format_value, value))
    return f"{value!r}".removesuffix(".0") if isinstance(value, float) else str(value)


def format_scale(g: Any, digits: str = "") -> str:
    """A guidance scale as a person types it: 7.5, 12:4. `digits` is a number's format."""
    ends = g if isinstance(g, list | tuple) else (g,)
    if isinstance(g, str):
        return g
    return ":".join(f"{end:{digits}}".removesuffix(".0") for end in ends)


def default_hint(v1_4: object) -> str:
    """The remedy for a setting of which a model has a default of its own."""
    return f"leave it out to use the model's default (v1-4: {v1_4})"


def nearest_multiples(number: int, factor: int) -> str:
    """The multiples of `factor` around a number, without 0: "496 or 504"."""
    below = number - number % factor
    return " or ".join(str(n) for n in (below, below + factor) if n)


def num_steps_taken(steps: int, strength: float) -> int:
    """How many of `steps` a pass of this strength takes, the last ones; rounded down as diffusers.

    strength: from 0, no noise, to 1, pure noise.
    """
    return min(int(steps * strength), steps)


def check_int(name: str, value: object, low: int, high: int, remedy: str = "") -> int:
    """A whole number from `low` to `high`.

    Raises:
        UsageError: otherwise.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(
            f"{name}={_repr(value)}", "is not a whole number", _range(low, high, remedy)
        ) from None
    if not low <= number <= high:
        raise UsageError(f"{name}={number}", f"is out of range, {low} to {high}", remedy)
    return number


def check_number(
    name: str, value: object, low: float, high: float, remedy: str = "", *, above: bool = False
) -> float:
    """A number from `low`, or with `above` larger than `low`, to `high`.

    Raises:
        UsageError: otherwise.
    """
    if not _are_numbers([value]):
        raise UsageError(
            f"{name}={_repr(value)}", "is not a number", _range(low, high, remedy, above=above)
        )
    number = float(value)  # type: ignore[arg-type]
    if not (low < number <= high if above else low <= number <= high):
        first = f"above {low:g}" if above else f"{low:g}"
        raise UsageError(f"{name}={number:g}", f"is out of range, {first} to {high:g}", remedy)
    return number


def check_side(name: str, value: object) -> int:
    """A width or height in pixels: a multiple of 8, the factor of v1-4's VAE.

    Raises:
        UsageError: otherwise.
    """
    if isinstance(value, str) and (both := re.fullmatch(r"(\d+) ?[xX*:] ?(\d+)", value)):
        rule = "is a size, and width and height are two settings"
        raise UsageError(f"{name}={value!r}", rule, f"give width={both[1]} and height={both[2]}")
    side = check_int(name, value, 8, MAX_SIDE, "give a multiple of 8, such as 512")
    if side % 8:
        raise UsageError(
            f"{name}={side}",
            "is not a multiple of 8",
            f"the nearest are {nearest_multiples(side, 8).replace(' or ', ' and ')}",
        )
    return side


def check_bool(name: str, value: object) -> bool:
    """True or False.

    Raises:
        UsageError: otherwise.
    """
    if not isinstance(value, bool):
        raise UsageError(f"{name}={_repr(value)}", "is not true or false", "give yes or no")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """One of some words.

    Raises:
        UsageError: otherwise.
    """
    if not isinstance(value, str) or value not in choices:
        raise UsageError(
            f"{name}={_repr(value)}", "is not known", f"use one of {', '.join(choices)}"
        )
    return value


def check_text(name: str, value: object) -> str:
    """A text that can be encoded: Python keeps undecodable bytes of argv as lone surrogates.

    Raises:
        UsageError: otherwise.
    """
    if not isinstance(value, str):
        raise UsageError(f"{name}={_repr(value)}", "is not text", "give a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name}={_repr(value)}", "is not UTF-8 text") from None
    return value


def check_scale(name: str, value: object) -> Scale:
    """A guidance scale, or that of the first step and that of the last.

    Raises:
        UsageError: it is neither a finite number nor two of them.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str)
    ends: Sequence[Any] = value if several else (value,)  # type: ignore[assignment]
    if not _are_numbers(ends) or len(ends) != (2 if several else 1):
        raise UsageError(
            f"{name}={_repr(value)}",
            "is neither a number nor a first and a last one, 12:4 or in Python (12, 4)",
            default_hint(7.5),
        )
    if not all(math.isfinite(end) for end in ends):
        shown = ":".join(f"{end:g}" for end in ends)
        raise UsageError(f"{name}={shown}", "is not finite", default_hint(7.5))
    first, last = float(ends[0]), float(ends[-1])
    return first if first == last else (first, last)


def check_interval(name: str, value: object) -> tuple[float, float]:
    """Two noise levels (sigmas), the lower one first.

    Raises:
        UsageError: otherwise.
    """
    shown = _repr(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and _are_numbers(value):
        shown = ",".join(f"{sigma:g}" for sigma in value)[:80]
        if len(value) == 2 and 0 <= value[0] < value[1] < math.inf:
            return float(value[0]), float(value[1])
    raise UsageError(
        f"{name}={shown}",
        "is not two noise levels from 0 up, the lower one first",
        "give two sigmas such as 0.3,5 (v1-4: from 14.6, noise, down to 0.03)",
    )


def check_outpaint(name: str, value: object) -> tuple[int, int, int, int]:
    """The pixels by which an image grows: left, top, right, bottom.

    Raises:
        UsageError: they are not four multiples of 8 from 0, or all of them are 0.
    """
    shown = _repr(value)
    if isinstance(value, Sequence) and all(type(side) is int for side in value):
        shown = ",".join(map(str, value))[:80]
        if len(value) == 4:
            left, top, right, bottom = value
            if max(value) > 0 and all(side >= 0 and side % 8 == 0 for side in value):
                return left, top, right, bottom
    raise UsageError(
        f"{name}={shown}",
        "is not four multiples of 8, at least one of them above 0",
        "give the pixels to add on the left, top, right and bottom, such as 0,0,64,0",
    )


def _are_numbers(values: Sequence[object]) -> bool:
    return all(
        isinstance(v, numbers.Real)
        and not isinstance(v, bool)
        and not (isinstance(v, int) and abs(v) >= 10**308)  # no float is so large
        for v in values
    )


def _range(low: float, high: float, remedy: str, *, above: bool = False) -> str:
    """What to give, where a value is not even a number."""
    first = (
        f"above {low:g}" if above else f"from {low:g}" if isinstance(low, float) else f"from {low}"
    )
    last = f"{high:g}" if isinstance(high, float) else f"{high}"
    return f"give one {first} to {last}" + (f"; {remedy}" if remedy else "")


def _repr(value: object) -> str:
    return repr(value)[:80]
