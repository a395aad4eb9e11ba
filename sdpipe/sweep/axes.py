"""Several values in one text, written as in the X/Y/Z plot of A1111's web UI, and parts {a|b}.

    1,3,7.5        these
    1-5            1, 2, 3, 4, 5; and 5-1 counts down
    1-9 (+2)       in steps of 2; 10-5 (-3) is 10, 7, and for g there is 1-3 (+0.5)
    1-10 [5]       five values, evenly spaced, both ends included: 1, 3, 5, 7, 10
    1-3,7          ranges and values together

The meaning is that of `scripts/xyz_grid.py` in stable-diffusion-webui: spaces are free, a step has
a sign, and of whole numbers [5] drops the fraction. Three things differ: what counts down reaches
its end (there 10-5 (-1) ends at 7), no fraction goes beyond it (there 1-2 (+0.3) ends at 2.2), and
a tenth is exactly a tenth, because steps are computed in fractions.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from sdpipe.errors import UsageError
from sdpipe.settings import RULES
from sdpipe.values import format_value

MAX_VALUES = 1000  # of one text

_NUMBER = r"[+-]?\s*(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})"
_RANGE = re.compile(
    rf"(?P<first>{_NUMBER})\s*-\s*(?P<last>{_NUMBER})\s*"
    rf"(?:\((?P<step>[^()]*)\)|\[(?P<count>[^\[\]]*)\])?"
)
_STEP = re.compile(rf"\s*(?=[+-]){_NUMBER}\s*")
_BRACES = re.compile(r"\{([^{}]*)\}")


def parse_values(name: str, text: str) -> list[Any]:
    """The values of a setting that a text lists; `Settings` checks each.

    Raises:
        UsageError: a part is empty, is neither a number nor a range where the setting is a number,
            or there are more than `MAX_VALUES`.
    """
    rule = RULES[name]
    found: list[Any] = []
    for part in _parts(name, text, rule.separator):
        value = rule.parse(part)
        if isinstance(value, str) and rule.ranges is not None:
            found += _range(name, part, rule.ranges)
        else:
            found.append(value)
        if len(found) > MAX_VALUES:
            raise _too_many(name, text, len(found))
    return found


def format_values(values: Sequence[object]) -> str:
    """The shortest text that lists some values: three or more in a row become a range."""
    shown = []
    i = 0
    while i < len(values):
        end = i
        while end + 1 < len(values) and _is_next(values[end], values[end + 1]):
            end += 1
        if end - i < 2:
            end = i
        shown.append(format_value(values[i]) if end == i else f"{values[i]}-{values[end]}")
        i = end + 1
    return ("; " if any("," in text for text in shown) else ",").join(shown)


def split_prompt(name: str, text: Any) -> tuple[list[str], list[list[str]]]:
    """What is between the parts {a|b} of a prompt, one more than them, and their alternatives.

    Raises:
        UsageError: `text` is not text, or one of its parts is not closed.
    """
    if not isinstance(text, str):
        raise UsageError(f"{name}={text!r}", "is not text", "give a string")
    between, parts = [""], []
    for i, piece in enumerate(_BRACES.split(text)):
        if i % 2 and "|" in piece:
            parts.append([alternative.strip() for alternative in piece.split("|")])
            between.append("")
        elif i % 2:
            between[-1] += f"{{{piece}}}"  # braces without alternatives are nothing special
        elif "|" in piece and ("{" in piece or "}" in piece):
            raise UsageError(
                f"{name}={text!r}",
                "has a part that is open at one end, or inside of another",
                "write parts as {cat|dog}",
            )
        else:
            between[-1] += piece
    return between, parts


def join_prompt(between: Sequence[str], chosen: Sequence[str]) -> str:
    """A prompt with one alternative in each place; an empty one leaves no gap."""
    text = between[0]
    for alternative, after in zip(chosen, between[1:], strict=True):
        if not alternative and (not text or text.endswith(" ")):
            after = after.removeprefix(" ")
        text += alternative + after
    return text.strip() if "" in chosen else text


def _is_next(value: object, after: object) -> bool:
    both = type(value) is int and type(after) is int
    return both and value + 1 == after  # type: ignore[operator]


def _parts(name: str, text: str, separator: str) -> Iterator[str]:
    for part in text.split(separator):
        if not part.strip():
            raise UsageError(
                f"{name}={text!r}",
                "has an empty place",
                f"put one {separator} between two values, and none at the ends",
            )
        yield part.strip()


def _range(name: str, part: str, kind: Callable[[Fraction], Any]) -> list[Any]:
    """The values of a range, of int or float."""
    if (match := _RANGE.fullmatch(part)) is None:
        raise UsageError(
            f"{name}={part!r}",
            f"is neither {'a whole number' if kind is int else 'a number'} nor a range",
            "give values such as 20,30, or a range such as 1-5, '1-9 (+2)' or '10-50 [5]'",
        )
    first, last = _number(match["first"]), _number(match["last"])
    step = None if match["step"] is None else _step(name, match)
    if kind is int and any(n.denominator > 1 for n in (first, last, step or first)):
        raise UsageError(f"{name}={part!r}", f"has fractions, and {name} is a whole number")
    if match["count"] is not None:
        spaced = _spaced(name, match, first, last)
        return [kind(value) for value in spaced]
    if step is None:
        step = Fraction(1 if last >= first else -1)
    if (last - first) * step < 0:
        sign = "+" if step < 0 else "-"
        raise UsageError(
            f"{name}={part!r}",
            "goes away from its end",
            f"use a step of ({sign}{format_value(float(abs(step)))})",
        )
    count = (last - first) // step + 1
    if count > MAX_VALUES:
        raise _too_many(name, part, count)
    return [kind(first + i * step) for i in range(count)]


def _step(name: str, match: re.Match[str]) -> Fraction:
    text = match["step"]
    if not _STEP.fullmatch(text) or (step := _number(text)) == 0:
        raise UsageError(
            f"{name}={match[0]!r}",
            f"has the step {text.strip()!r}, which is not a number with its sign",
            "write (+2) or (-0.5)",
        )
    return step


def _spaced(name: str, match: re.Match[str], first: Fraction, last: Fraction) -> list[Fraction]:
    text = match["count"].strip()
    if not re.fullmatch(r"[0-9]{1,30}", text) or int(text) < 1:
        raise UsageError(
            f"{name}={match[0]!r}",
            f"asks for {text!r} values, which is not a whole number from 1",
            "write [5]",
        )
    count = int(text)
    if count > MAX_VALUES:
        raise _too_many(name, match[0], count)
    return [first + (last - first) * Fraction(i, max(1, count - 1)) for i in range(count)]


def _number(text: str) -> Fraction:
    return Fraction("".join(text.split()))


def _too_many(name: str, text: str, count: int) -> UsageError:
    return UsageError(
        f"{name}={text!r}",
        f"has {count} values, and up to {MAX_VALUES} are possible",
        "leave some out, as [5] does, which takes five of a range",
    )
