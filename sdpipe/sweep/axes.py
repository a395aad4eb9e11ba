"""Several values in one text, written as in the X/Y/Z plot of A1111's web UI.

    1,3,7.5        these
    1-5            1, 2, 3, 4, 5; and 5-1 counts down
    1-9 (+2)       in steps of 2; 10-5 (-3) is 10, 7, and for g there is 1-3 (+0.5)
    1-10 [5]       five values, evenly spaced, both ends included: 1, 3, 5, 7, 10
    1-3,7          ranges and values together

The meaning is that of `scripts/xyz_grid.py` in stable-diffusion-webui: spaces are free, a step has
a sign, and of whole numbers [5] drops what is behind the point. Three things are other: what counts
down reaches its end (there 10-5 (-1) ends at 7), no fraction goes beyond it (there 1-2 (+0.3) ends
at 2.2), and a tenth is exactly a tenth, because the steps are taken in fractions.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

from sdpipe.errors import UsageError
from sdpipe.guidance import Scale, scale

T = TypeVar("T", int, float, Scale)

MAX_VALUES = 1000  # of one text; who wants more is mistaken, or has them in a script

_NUMBER = r"[+-]?\s*(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})"
_RANGE = re.compile(
    rf"(?P<first>{_NUMBER})\s*-\s*(?P<last>{_NUMBER})\s*"
    rf"(?:\((?P<step>[^()]*)\)|\[(?P<count>[^\[\]]*)\])?"
)
_STEP = re.compile(rf"\s*(?=[+-]){_NUMBER}\s*")


def whole_numbers(name: str, text: str) -> list[int]:
    """The whole numbers that a text lists; `name` is what messages call the setting.

    Raises:
        UsageError: a part of it is neither a whole number nor a range of them, or they are more
            than `MAX_VALUES`.
    """
    return _listed(name, text, int, "a whole number")


def numbers(name: str, text: str) -> list[float]:
    """The numbers that a text lists, fractions among them.

    Raises:
        UsageError: as `whole_numbers`.
    """
    return _listed(name, text, float, "a number")


def scales(name: str, text: str) -> list[Scale]:
    """The guidance scales that a text lists: numbers, and pairs such as 12:4 among them.

    Raises:
        UsageError: as `whole_numbers`.
    """

    def one(value: str | Fraction) -> Scale:
        found = scale(value) if isinstance(value, str) else float(value)
        if isinstance(found, str):
            raise ValueError
        return found

    return _listed(name, text, one, "a number, a pair such as 12:4")


def words(name: str, text: str) -> list[str]:
    """The words that a text lists, with commas between them.

    Raises:
        UsageError: there is none before, after or between commas.
    """
    return list(_parts(name, text))


def as_text(values: Sequence[object]) -> str:
    """Values as the shortest text that lists them: three or more in a row become a range."""
    shown = []
    i = 0
    while i < len(values):
        end = i
        while end + 1 < len(values) and _next_to(values[end], values[end + 1]):
            end += 1
        if end - i < 2:
            end = i
        shown.append(plain(values[i]) if end == i else f"{values[i]}-{values[end]}")
        i = end + 1
    return ("; " if any("," in each for each in shown) else ",").join(shown)


def plain(value: object) -> str:
    """One value, as a person writes it: 7.5, 20, euler, yes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value!r}".removesuffix(".0") if isinstance(value, float) else str(value)


def _next_to(value: object, after: object) -> bool:
    both = type(value) is int and type(after) is int
    return both and value + 1 == after  # type: ignore[operator]


def _parts(name: str, text: str) -> Iterator[str]:
    for part in text.split(","):
        if not part.strip():
            raise UsageError(
                f"{name}={text!r} has nothing in one of its places; values have one comma between "
                "them and none at the ends."
            )
        yield part.strip()


def _listed(name: str, text: str, kind: Callable[[str | Fraction], T], what: str) -> list[T]:
    found: list[T] = []
    for part in _parts(name, text):
        try:
            found.append(kind(part))
        except ValueError:
            match = _RANGE.fullmatch(part)
            if match is None:
                raise UsageError(
                    f"{name}={part!r} is neither {what} nor a range; give values such as 20,30, "
                    "or a range such as 1-5, '1-9 (+2)' or '10-50 [5]'."
                ) from None
            found += [kind(value) for value in _range(name, match, whole=kind is int)]
        if len(found) > MAX_VALUES:
            raise _too_many(name, text, len(found))
    return found


def _range(name: str, match: re.Match[str], *, whole: bool) -> list[Fraction]:
    """What a range stands for. Whole numbers are still fractions here, to be cut off."""
    first, last = _number(match["first"]), _number(match["last"])
    steps = _step(name, match) if match["step"] is not None else None
    if whole and any(n.denominator > 1 for n in (first, last, steps or first)):
        raise UsageError(f"{name}={match[0]!r} has fractions, and {name} is a whole number.")
    if match["count"] is not None:
        return _spaced(name, match, first, last)
    if steps is None:
        steps = Fraction(1 if last >= first else -1)
    if (last - first) * steps < 0:
        sign = "+" if steps < 0 else "-"
        raise UsageError(
            f"{name}={match[0]!r} goes away from its end; take a step of ({sign}{_shown(steps)})."
        )
    count = (last - first) // steps + 1
    if count > MAX_VALUES:
        raise _too_many(name, match[0], count)
    return [first + i * steps for i in range(count)]


def _step(name: str, match: re.Match[str]) -> Fraction:
    text = match["step"]
    if not _STEP.fullmatch(text) or (step := _number(text)) == 0:
        raise UsageError(
            f"{name}={match[0]!r} has the step {text.strip()!r}; a step is a number with its sign, "
            "and not 0, as in (+2) or (-0.5)."
        )
    return step


def _spaced(name: str, match: re.Match[str], first: Fraction, last: Fraction) -> list[Fraction]:
    text = match["count"].strip()
    if not re.fullmatch(r"[0-9]{1,30}", text) or int(text) < 1:
        raise UsageError(
            f"{name}={match[0]!r} asks for {text!r} values; how many is a whole number from 1, as "
            "in [5]."
        )
    count = int(text)
    if count > MAX_VALUES:
        raise _too_many(name, match[0], count)
    return [first + (last - first) * Fraction(i, max(1, count - 1)) for i in range(count)]


def _number(text: str) -> Fraction:
    return Fraction("".join(text.split()))


def _shown(step: Fraction) -> str:
    return plain(float(abs(step)))


def _too_many(name: str, text: str, count: int) -> UsageError:
    return UsageError(
        f"{name}={text!r} has {count} values; up to {MAX_VALUES} are taken: leave some out, as "
        "[5] does for five of a range."
    )
