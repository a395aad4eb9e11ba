"""What single values of a configuration may be, in words and as tests."""

import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_short = reprlib.Repr()
_short.maxstring = _short.maxlong = _short.maxother = 60


def shorten(value: object) -> str:
    """A value as messages show it, in about one line however large or deep it is."""
    return _short.repr(value)


@dataclass(frozen=True)
class Rule:
    """What a value may be, in words and as a test."""

    text: str
    accepts: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """A whole number in a range; true and false are none."""

    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Rule(f"a whole number from {low} to {high}", accepts)


def number(low: float, high: float) -> Rule:
    """A finite number in a range."""

    def accepts(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and low <= value <= high

    return Rule(f"a number from {low:g} to {high:g}", accepts)


def one_of(*values: Any) -> Rule:
    """One of a few values."""
    shown = ", ".join("null" if value is None else str(value) for value in values)
    return Rule(f"one of {shown}", lambda value: any(value is v or value == v for v in values))


def list_of(rule: Rule, most: int, least: int = 1) -> Rule:
    """A list whose values keep a rule."""

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, list | tuple)
            and least <= len(value) <= most
            and all(map(rule.accepts, value))
        )

    return Rule(f"a list of {least} to {most}, each {rule.text}", accepts)


def either(*rules: Rule) -> Rule:
    """What keeps one of some rules."""
    return Rule(" or ".join(r.text for r in rules), lambda v: any(r.accepts(v) for r in rules))


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("a short text", lambda value: isinstance(value, str) and len(value) <= 100)
MAX_NAMES = 20_000  # that a model knows
ID = whole(0, 10_000_000)

MARKS = ("bos_token", "eos_token", "unk_token", "pad_token")
TOKEN_FLAGS = {"single_word", "lstrip", "rstrip", "normalized", "special"}


def _is_content(value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= 1000:
        return False
    return not re.search("[\ud800-\udfff]", value)


def _is_token(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_content(value.get("content"))
        and value.get("__type", "AddedToken") == "AddedToken"
        and value.keys() <= TOKEN_FLAGS | {"content", "__type"}
        and all(isinstance(value[flag], bool) for flag in TOKEN_FLAGS & value.keys())
    )


def are_numbered(values: Any) -> bool:
    """Whether it is an object of ids, each with a token."""
    return isinstance(values, dict) and all(
        re.fullmatch("[0-9]{1,8}", id_) and _is_token(token) for id_, token in values.items()
    )


def _is_numbered(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and ID.accepts(value.get("id"))
        and _is_token({k: v for k, v in value.items() if k != "id"})
    )


def are_short_texts(values: Any) -> bool:
    """Whether it is an object of short texts, of at most `MAX_NAMES`."""
    return (
        isinstance(values, dict)
        and len(values) <= MAX_NAMES
        and all(map(TEXT.accepts, (*values, *values.values())))
    )


NUMBERED_TOKEN = Rule("an id, a content and flags", _is_numbered)
MARK = either(Rule("a text", _is_content), Rule("an object of a content and flags", _is_token))
