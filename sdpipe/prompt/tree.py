"""A parsed prompt, and its text at each step. `syntax.py` parses it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Text = tuple[tuple[tuple[str, float], ...], ...]
"""A prompt at one step: parts that a BREAK separates, each of pieces with their weights."""

EMPTY: Text = ((),)
"""The empty prompt."""


@dataclass(frozen=True)
class Words:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Break:
    """The end of a part; the next part begins a new chunk."""


@dataclass(frozen=True)
class Weighted:
    """The inside of (round) or [square] brackets.

    weight: of these brackets alone. max_weight: the largest product with brackets inside.
    """

    inside: "tuple[Node, ...]"
    weight: float
    max_weight: float


@dataclass(frozen=True)
class Edit:
    """`before` up to a step, `after` from then on.

    when: an int is the number of steps with `before`, a float their fraction of all steps, 0 to 1.
    """

    before: "tuple[Node, ...]"
    after: "tuple[Node, ...]"
    when: int | float

    def first_step(self, steps: int) -> int:
        """The first step with `after`, counted from 0."""
        return self.when if isinstance(self.when, int) else int(self.when * steps)


@dataclass(frozen=True)
class Alternate:
    """A different option at each step, in turn."""

    options: "tuple[tuple[Node, ...], ...]"


Node = Words | Break | Weighted | Edit | Alternate


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt."""

    nodes: tuple[Node, ...]

    @property
    def is_scheduled(self) -> bool:
        """Whether the text may change from step to step."""
        return any(isinstance(node, Edit | Alternate) for node in _walk(self.nodes))

    def words(self) -> list[str]:
        """All plain text, without brackets, weights and numbers of steps."""
        return [node.text for node in _walk(self.nodes) if isinstance(node, Words)]

    def at(self, step: int, steps: int) -> Text:
        """The text at a step, counted from 0, of a run of `steps`.

        Neighbours of the same weight are one piece, as in A1111: "[fe|]male" is "female".
        """
        parts: list[list[tuple[list[str], float]]] = [[]]
        for piece in _pieces(self.nodes, step, steps):
            if piece is None:
                parts.append([])
            elif parts[-1] and parts[-1][-1][1] == piece[1]:
                parts[-1][-1][0].append(piece[0])
            else:
                parts[-1].append(([piece[0]], piece[1]))
        return tuple(tuple(("".join(words), weight) for words, weight in part) for part in parts)

    def schedule(self, steps: int) -> tuple[list[Text], tuple[int, ...]]:
        """The distinct texts of a run of `steps`, and which of them it is at each step.

        A prompt that never changes has a schedule of a single entry.
        """
        edits, periods = set(), set()
        for node in _walk(self.nodes):
            if isinstance(node, Edit):
                edits.add(node.first_step(steps))
            elif isinstance(node, Alternate):
                periods.add(len(node.options))
        texts: dict[Text, int] = {}
        states: dict[tuple[int, ...], int] = {}  # the text of each state of edits and alternations
        schedule = []
        for step in range(steps if edits or periods else 1):
            state = (sum(step >= first for first in edits), *(step % n for n in periods))
            if state not in states:
                states[state] = texts.setdefault(self.at(step, steps), len(texts))
            schedule.append(states[state])
        return list(texts), tuple(schedule)

    def unreached_edits(self, steps: int) -> list[int]:
        """The steps named in the prompt that a run of `steps` does not reach."""
        edits = (node for node in _walk(self.nodes) if isinstance(node, Edit))
        return [e.when for e in edits if isinstance(e.when, int) and e.when >= steps]


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
                now = before if step < node.first_step(steps) else after
                yield from _pieces(now, step, steps)
            case Alternate(options):
                yield from _pieces(options[step % len(options)], step, steps)


def _children(node: Node) -> tuple[tuple[Node, ...], ...]:
    match node:
        case Weighted(inside):
            return (inside,)
        case Edit(before, after):
            return (before, after)
        case Alternate(options):
            return options
    return ()


def _walk(nodes: Iterable[Node]) -> Iterator[Node]:
    """All nodes, including nested ones."""
    for node in nodes:
        yield node
        for inside in _children(node):
            yield from _walk(inside)


def max_weight(nodes: Iterable[Node]) -> float:
    """The largest weight of any of these nodes."""
    weights = [
        node.max_weight
        if isinstance(node, Weighted)
        else max(map(max_weight, _children(node)), default=1.0)
        for node in nodes
    ]
    return max(weights, default=1.0)
