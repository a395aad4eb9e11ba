r"""What the signs in a prompt mean: weights, breaks, and words that change over the steps.

    (cat)          weight 1.1               [cat:dog:0.5]  cat, from half of the steps on dog
    (cat:1.3)      weight 1.3               [cat:dog:10]   cat for 10 steps, then dog
    [cat]          weight 1/1.1             [dog:10]       nothing for 10 steps, then dog
    \( \) \[ \]    the characters           [cat::0.3]     cat for 0.3 of the steps, then nothing
    \: \| \\                                [cat|dog]      cat, dog, cat, dog, step by step
    BREAK          the rest is encoded apart

The syntax of AUTOMATIC1111's web UI, as its `prompt_parser.py` reads it; but where that takes a
bracket without its other half, or a number that is none, for text, this refuses it. Everything
nests: what is in brackets is a prompt again. Knows nothing of torch, models or files.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from sdpipe.errors import UsageError

ROUND, SQUARE = 1.1, 1 / 1.1  # what a pair of brackets without a number multiplies by
MAX_WEIGHT = 10
MAX_STEP = 999  # of a step that is named; as many as there can be
MAX_DEPTH = 50  # brackets in brackets

Text = tuple[tuple[tuple[str, float], ...], ...]
"""A prompt at one step: parts between BREAKs, each of pieces with their weights."""

NOTHING: Text = ((),)
"""What the empty prompt says."""

_SIGNS = re.compile(r"[()\[\]\\]|\bBREAK\b")  # without these nothing has a meaning
_NEXT = re.compile(r"[()\[\]:|\\]|\bBREAK\b")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


@dataclass(frozen=True)
class Words:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Break:
    """The end of a part: what follows is encoded apart from what was before."""


@dataclass(frozen=True)
class Weighted:
    """What is in (round) or [square] brackets; heaviest: the largest weight that comes of it."""

    inside: "tuple[Node, ...]"
    weight: float
    heaviest: float


@dataclass(frozen=True)
class Edit:
    """`before` until a step, `after` from it on.

    when: an int is how many steps have `before`, a float their share of all steps, 0 to 1.
    """

    before: "tuple[Node, ...]"
    after: "tuple[Node, ...]"
    when: int | float

    def first(self, steps: int) -> int:
        """The step, from 0, that is the first with `after`."""
        return self.when if isinstance(self.when, int) else int(self.when * steps)


@dataclass(frozen=True)
class Alternate:
    """One after the other, a step each, and again from the first."""

    options: "tuple[tuple[Node, ...], ...]"


Node = Words | Break | Weighted | Edit | Alternate


@dataclass(frozen=True)
class Prompt:
    """A prompt that has been read."""

    nodes: tuple[Node, ...]

    @property
    def changes(self) -> bool:
        """Whether it is another text at one step than at another."""
        return any(isinstance(node, Edit | Alternate) for node in _walk(self.nodes))

    def at(self, step: int, steps: int) -> Text:
        """What it says at a step, counted from 0, of so many.

        Neighbours of the same weight are one piece, as A1111 has it: "[fe|]male" is "female".
        """
        parts: list[list[tuple[str, float]]] = [[]]
        for piece in _pieces(self.nodes, step, steps):
            if piece is None:
                parts.append([])
            elif parts[-1] and parts[-1][-1][1] == piece[1]:
                parts[-1][-1] = (parts[-1][-1][0] + piece[0], piece[1])
            else:
                parts[-1].append(piece)
        return tuple(tuple(part) for part in parts)

    def late(self, steps: int) -> list[int]:
        """The steps it names that so many steps never come to."""
        edits = (node for node in _walk(self.nodes) if isinstance(node, Edit))
        return [e.when for e in edits if isinstance(e.when, int) and e.when >= steps]


@lru_cache(maxsize=1024)
def parse(text: str, name: str = "prompt") -> Prompt:
    """Reads a prompt; `name` is what messages call it.

    Raises:
        UsageError: a bracket without its other half, or a number that breaks its rule.
    """
    if _SIGNS.search(text) is None:
        return Prompt((Words(text),) if text else ())
    return Prompt(tuple(_Reader(text, name).prompt()))


def literal(text: str) -> str:
    """The prompt that says a text as it stands, whatever signs are in it."""
    return re.sub(r"[()\[\]\\]|\bBREAK\b", r"\\\g<0>", text)


class _Reader:
    """Reads a text from its beginning to its end; `_at` is how far it has come."""

    def __init__(self, text: str, name: str) -> None:
        self._text, self._name = text, name
        self._at = self._depth = 0

    def prompt(self) -> list[Node]:
        """Everything."""
        nodes, end = self._nodes("")
        if end is not None:
            sign = self._text[end]
            self._refuse(
                f"the bracket {sign} in {self._place(end)} closes nothing; open it before, or "
                f"write \\{sign} for a plain one."
            )
        return nodes

    def _nodes(self, separators: str) -> tuple[list[Node], int | None]:
        """What comes up to a separator or a closing bracket, and where that is; None is the end."""
        nodes: list[Node] = []
        words: list[str] = []

        def keep(*more: Node) -> None:
            if text := "".join(words):
                nodes.append(Words(text))
            words.clear()
            nodes.extend(more)

        while found := _NEXT.search(self._text, self._at):
            words.append(self._text[self._at : found.start()])
            sign, self._at = found[0], found.end()
            if sign in "([":
                keep(self._bracket(found.start()))
            elif sign in ")]" or sign in separators:
                keep()
                return nodes, found.start()
            elif sign == "\\":
                words.append(self._escaped())
            elif sign == "BREAK":
                keep(Break())
            else:
                words.append(sign)
        words.append(self._text[self._at :])
        keep()
        return nodes, None

    def _escaped(self) -> str:
        """The character after a backslash; at the very end, the backslash."""
        self._at += 1
        return self._text[self._at - 1 : self._at] or "\\"

    def _bracket(self, at: int) -> Node:
        """What the bracket at `at` holds, up to the one that closes it."""
        sign, place = self._text[at], self._place(at)
        closing, separators = (")", ":") if sign == "(" else ("]", ":|")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"the bracket {sign} in {place} is inside {MAX_DEPTH} others, the most.")
        fields, marks = [], [at]
        while True:
            nodes, end = self._nodes(separators)
            if end is None:
                self._refuse(
                    f"the bracket {sign} in {place} is never closed; close it, or write \\{sign} "
                    "for a plain one."
                )
            fields.append(tuple(nodes))
            marks.append(end)
            if (found := self._text[end]) in ")]":
                break
        if found != closing:
            self._refuse(
                f"the bracket {sign} in {place} meets {found} in {self._place(end)}; close it "
                f"before with {closing}, or write \\{found} for a plain one."
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
            self._refuse(
                f"the bracket [ in {place} has both | and :, and takes one, as in [cat|dog] or "
                "[cat:dog:0.5]; write \\| or \\: for plain ones."
            )
        return self._weighted(fields[0], SQUARE, at)

    def _round(self, fields: list[tuple[Node, ...]], marks: list[int]) -> Weighted:
        """(prompt) or (prompt:weight); colons before the last are text."""
        if len(fields) == 1:
            return self._weighted(fields[0], ROUND, marks[0])
        told, place = self._text[marks[-2] + 1 : marks[-1]].strip(), self._place(marks[-2])
        if not _NUMBER.fullmatch(told):
            found = f"{told[:40]!r} after the colon in {place} is no weight"
            found = found if told else f"no weight follows the colon in {place}"
            self._refuse(
                f"{found}; one is a number from 0 to {MAX_WEIGHT}, as in (cat:1.3); write \\: for "
                "a plain colon."
            )
        if not 0 <= float(told) <= MAX_WEIGHT:
            self._refuse(
                f"the weight {told[:40]} after the colon in {place} is out of range: 0 to "
                f"{MAX_WEIGHT}."
            )
        inside = fields[0]
        for field in fields[1:-1]:
            inside = (*inside, Words(":"), *field)
        return self._weighted(inside, float(told), marks[0])

    def _weighted(self, inside: tuple[Node, ...], weight: float, at: int) -> Weighted:
        heaviest = weight * _heaviest(inside)
        if heaviest > MAX_WEIGHT:
            self._refuse(
                f"the bracket {self._text[at]} in {self._place(at)} and those inside it multiply "
                f"to a weight of {heaviest:.4g}; take smaller ones, up to {MAX_WEIGHT} in all."
            )
        return Weighted(inside, weight, heaviest)

    def _edit(self, fields: list[tuple[Node, ...]], marks: list[int]) -> Edit:
        """[after:when] or [before:after:when]."""
        if len(fields) > 3:
            self._refuse(
                f"the bracket [ in {self._place(marks[0])} has {len(fields) - 1} colons, and "
                "[cat:dog:0.5] has two; write \\: for a plain colon."
            )
        told, place = self._text[marks[-2] + 1 : marks[-1]].strip(), self._place(marks[-2])
        share = "." in told
        most = 1 if share else MAX_STEP
        if _NUMBER.fullmatch(told) and not 0 <= float(told) <= most:
            self._refuse(
                f"{told[:40]} after the colon in {place} is out of range: a share of the steps, "
                f"with a point, is 0.0 to 1.0, and a number of them 0 to {MAX_STEP}; a weight is "
                "(cat:1.3)."
            )
        if not _NUMBER.fullmatch(told):
            self._refuse(
                f"{told[:40]!r} after the colon in {place} is neither a number of steps, as in "
                "[cat:dog:10], nor a share of them from 0.0 to 1.0, as in [cat:dog:0.5]; a weight "
                "is (cat:1.3), and a plain colon \\:."
            )
        before = fields[0] if len(fields) == 3 else ()
        return Edit(before, fields[-2], float(told) if share else int(told))

    def _refuse(self, message: str) -> NoReturn:
        raise UsageError(f"{self._name}: {message}")

    def _place(self, at: int) -> str:
        """Where a character is, counted from 1."""
        before = self._text[:at].split("\n")
        line = f"line {len(before)}, " if "\n" in self._text else ""
        return f"{line}column {len(before[-1]) + 1}"


def _pieces(nodes: Iterable[Node], step: int, steps: int) -> Iterator[tuple[str, float] | None]:
    """Texts with their weights at a step; None is a BREAK."""
    for node in nodes:
        match node:
            case Words(text):
                yield text, 1.0
            case Break():
                yield None
            case Weighted(inside, weight):
                for piece in _pieces(inside, step, steps):
                    yield piece and (piece[0], piece[1] * weight)
            case Edit(before, after):
                yield from _pieces(before if step < node.first(steps) else after, step, steps)
            case Alternate(options):
                yield from _pieces(options[step % len(options)], step, steps)


def _inside(node: Node) -> tuple[tuple[Node, ...], ...]:
    match node:
        case Weighted(inside):
            return (inside,)
        case Edit(before, after):
            return (before, after)
        case Alternate(options):
            return options
    return ()


def _walk(nodes: Iterable[Node]) -> Iterator[Node]:
    """All nodes, also those inside others."""
    for node in nodes:
        yield node
        for inside in _inside(node):
            yield from _walk(inside)


def _heaviest(nodes: Iterable[Node]) -> float:
    """The largest weight that any of these has."""
    weights = [
        node.heaviest
        if isinstance(node, Weighted)
        else max(map(_heaviest, _inside(node)), default=1.0)
        for node in nodes
    ]
    return max(weights, default=1.0)
