r"""The prompt syntax: weights, breaks, and words that change over the steps.

    (cat)          weight 1.1               [cat:dog:0.5]  cat, from half of the steps on dog
    (cat:1.3)      weight 1.3               [cat:dog:10]   cat for 10 steps, then dog
    [cat]          weight 1/1.1             [dog:10]       nothing for 10 steps, then dog
    \( \) \[ \]    the characters           [cat::0.3]     cat for 0.3 of the steps, then nothing
    [cat:dog:1.5]  dog from half of the second pass on
    \: \| \\                                [cat|dog]      cat, dog, cat, dog, step by step
    BREAK          the rest is encoded in chunks of its own

The syntax is that of AUTOMATIC1111's web UI (`prompt_parser.py`) with two differences. A bracket
without its other half and a malformed number are errors here, not text. And what changes over the
steps comes one step later there, and is counted otherwise in the second pass: see `tree.Timing`,
and the setting `prompt_edits`, which follows it. Brackets nest. Imports no torch.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from sdpipe.errors import UsageError, warn
from sdpipe.prompt.tree import (
    Alternate,
    Break,
    Edit,
    Node,
    Prompt,
    Timing,
    Weighted,
    Words,
    max_weight,
)

ROUND, SQUARE = 1.1, 1 / 1.1  # the weight of a pair of brackets without a number
MAX_WEIGHT = 10
MAX_STEP = 999
MAX_DEPTH = 50  # of nested brackets
MAX_PROMPT = 2**14  # characters; a text encoder reads a few hundred of them

_SPECIAL = re.compile(r"[()\[\]\\]|\bBREAK\b")  # a prompt without these is plain text
_SIGN = re.compile(r"[()\[\]:|\\]|\bBREAK\b")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")


def parse(text: str, name: str = "prompt") -> Prompt:
    """Parses a prompt; `name` is how messages call it.

    Raises:
        UsageError: a bracket without its other half, a malformed number, or too long a text.
    """
    if len(text) > MAX_PROMPT:
        rule = f"has {len(text)} characters, and at most {MAX_PROMPT} are read"
        raise UsageError(name, rule, "shorten it")
    try:
        return _parse(text)
    except UsageError as error:
        raise UsageError(f"{name}: {error.value}", error.rule, error.remedy) from None


@lru_cache(maxsize=64)  # few, for a long prompt has megabytes of nodes
def _parse(text: str) -> Prompt:
    if _SPECIAL.search(text) is None:
        return Prompt((Words(text),) if text else ())
    return Prompt(_Parser(text).parse())


def escape(text: str) -> str:
    """The prompt that means a text literally, whatever signs are in it."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def warn_unreached_edits(prompts: Iterable[str], timing: Timing) -> None:
    """Warns, with an `SdpipeWarning`, of every edit that a run does not reach."""
    for prompt in prompts:
        for when in parse(prompt).unreached_edits(timing):
            if isinstance(when, int):
                warn(
                    f"a prompt changes after step {when}, which a run of {timing.steps} does not "
                    "reach; use a lower number, or a fraction of the steps, as in [cat:dog:0.5]."
                )
            else:
                warn(
                    f"a prompt changes at {when}, which this run does not reach; 0.0 to 1.0 is a "
                    "fraction of its steps, 1.0 to 2.0 one of the second pass of hires_scale; a "
                    "weight is (cat:1.3)."
                )


class _Parser:
    """A recursive descent parser; `_at` is the position of the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = self._depth = 0

    def parse(self) -> tuple[Node, ...]:
        nodes, end = self._sequence("")
        if end is not None:
            raise UsageError(
                self._bracket(end),
                "closes nothing",
                f"open it before, or write \\{self._text[end]} for a plain one",
            )
        return nodes

    def _sequence(self, separators: str) -> tuple[tuple[Node, ...], int | None]:
        """The nodes up to a separator or closing bracket, and its position; None at the end."""
        nodes: list[Node] = []
        words: list[str] = []

        def add(*node: Node) -> None:
            if text := "".join(words):
                nodes.append(Words(text))
            words.clear()
            nodes.extend(node)

        while found := _SIGN.search(self._text, self._at):
            words.append(self._text[self._at : found.start()])
            sign, self._at = found[0], found.end()
            if sign in "([":
                add(self._group(found.start()))
            elif sign in ")]" or sign in separators:
                add()
                return tuple(nodes), found.start()
            elif sign == "\\":
                self._at += 1
                words.append(self._text[found.end() : self._at] or "\\")
            elif sign == "BREAK":
                add(Break())
            else:
                words.append(sign)
        words.append(self._text[self._at :])
        add()
        return tuple(nodes), None

    def _group(self, at: int) -> Node:
        """The node of the bracket at `at`, up to the bracket that closes it."""
        sign = self._text[at]
        closing, separators = (")", ":") if sign == "(" else ("]", ":|")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            rule = f"is nested deeper than {MAX_DEPTH} brackets"
            raise UsageError(self._bracket(at), rule, "use fewer")
        fields, marks, end_sign = [], [at], ""
        while end_sign not in (")", "]"):
            nodes, end = self._sequence(separators)
            if end is None:
                remedy = f"close it, or write \\{sign} for a plain one"
                raise UsageError(self._bracket(at), "is never closed", remedy)
            fields.append(nodes)
            marks.append(end)
            end_sign = self._text[end]
        if end_sign != closing:
            raise UsageError(
                self._bracket(at),
                f"meets {end_sign} in {self._place(marks[-1])}",
                f"close it with {closing} before, or write \\{end_sign} for a plain one",
            )
        self._depth -= 1
        used = {self._text[mark] for mark in marks[1:-1]}
        if sign == "(":
            return self._round(fields, marks)
        if used == {"|"}:
            return Alternate(tuple(fields))
        if used == {":"}:
            return self._edit(fields, marks)
        if used:
            raise UsageError(
                self._bracket(at),
                "has both | and :",
                r"use one, as in [cat|dog] or [cat:dog:0.5]; plain ones are \| and \:",
            )
        return self._weighted(fields[0], SQUARE, at)

    def _round(self, fields: list[tuple[Node, ...]], marks: list[int]) -> Weighted:
        """(prompt) or (prompt:weight); colons before the last are text."""
        if len(fields) == 1:
            return self._weighted(fields[0], ROUND, marks[0])
        weight = self._number(marks)
        if weight is None or not 0 <= weight <= MAX_WEIGHT:
            rule = f"is not a weight from 0 to {MAX_WEIGHT}"
            remedy = r"write one as in (cat:1.3); a plain colon is \:"
            raise UsageError(self._last_field(marks), rule, remedy)
        inside = list(fields[0])
        for field in fields[1:-1]:
            inside += (Words(":"), *field)
        return self._weighted(tuple(inside), float(weight), marks[0])

    def _weighted(self, inside: tuple[Node, ...], weight: float, at: int) -> Weighted:
        largest = weight * max_weight(inside)
        if largest > MAX_WEIGHT:
            rule = f"multiplies with those inside it to a weight of {largest:.4g}"
            raise UsageError(self._bracket(at), rule, f"the largest is {MAX_WEIGHT}")
        return Weighted(inside, weight, largest)

    def _edit(self, fields: list[tuple[Node, ...]], marks: list[int]) -> Edit:
        """[after:when] or [before:after:when]."""
        if len(fields) > 3:
            rule = f"has {len(fields) - 1} colons, and [cat:dog:0.5] has two"
            raise UsageError(self._bracket(marks[0]), rule, r"a plain colon is \:")
        when = self._number(marks)
        if when is None or not 0 <= when <= (MAX_STEP if isinstance(when, int) else 2):
            raise UsageError(
                self._last_field(marks),
                f"is neither a number of steps from 0 to {MAX_STEP} nor a fraction of them from "
                "0.0 to 1.0, or to 2.0 in a second pass",
                r"write [cat:dog:10] or [cat:dog:0.5]; a weight is (cat:1.3), a plain colon \:",
            )
        return Edit(fields[0] if len(fields) == 3 else (), fields[-2], when)

    def _number(self, marks: list[int]) -> int | float | None:
        """The number in the last field; None if it is malformed."""
        text = self._text[marks[-2] + 1 : marks[-1]].strip()
        if len(text) > 99 or not _NUMBER.fullmatch(text):
            return None
        return float(text) if "." in text else int(text)

    def _last_field(self, marks: list[int]) -> str:
        """The last field as messages call it."""
        text = self._text[marks[-2] + 1 : marks[-1]].strip()
        shown = repr(text[:40]) if text else "nothing"
        return f"{shown} after the colon in {self._place(marks[-2])}"

    def _bracket(self, at: int) -> str:
        """A bracket as messages call it."""
        return f"the bracket {self._text[at]} in {self._place(at)}"

    def _place(self, at: int) -> str:
        """The line and column of a character, counted from 1."""
        column = at - self._text.rfind("\n", 0, at)
        line = self._text.count("\n", 0, at) + 1
        return f"line {line}, column {column}" if "\n" in self._text else f"column {column}"
