"""A parsed prompt, and its text at each step. `syntax.py` parses it."""

from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sdpipe.errors import UsageError

MAX_WORK = 2**18
"""Of the texts of a prompt in the course of a run: how many there are, times the size of the
longest: its characters, 75 for a chunk that a BREAK begins, and the nodes of the prompt."""

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
        A float from 1.0 to 2.0 is a fraction of the second pass, 1.0 its beginning.
    """

    before: "tuple[Node, ...]"
    after: "tuple[Node, ...]"
    when: int | float

    def has_come(self, moment: "Moment") -> bool:
        """Whether it is `after`."""
        in_second, step = self.begin(moment.steps, moment.hires_steps)
        return (moment.hires_step if in_second else moment.step) >= step

    def begin(self, steps: int, hires_steps: int) -> tuple[bool, int]:
        """Whether `after` begins in the second pass, and the step from which on it is."""
        if isinstance(self.when, int):
            return False, self.when
        if self.when < 1:
            return False, int(self.when * steps)
        return True, int((self.when - 1) * hires_steps)


@dataclass(frozen=True)
class Alternate:
    """A different option at each step, in turn."""

    options: "tuple[tuple[Node, ...], ...]"


Node = Words | Break | Weighted | Edit | Alternate


@dataclass(frozen=True)
class Moment:
    """Where a run is, as edits and alternations see it.

    step: what edits of the first pass go by, from 0, of `steps`.
    turn: what alternations go by.
    hires_step: what edits of the second pass go by, of `hires_steps`; below 0 in the first pass.
    """

    step: int
    steps: int
    turn: int
    hires_step: int = -1
    hires_steps: int = 0


@dataclass(frozen=True)
class Timing:
    """How many steps a run has, and how its prompts count them.

    hires_steps: of the second pass, which repeats the last steps of the first. In A1111 it counts
        on instead, and its alternations begin anew.
    a1111_delay: how many steps later all comes in A1111, whose samplers count the calls of the
        U-Net from 0 and compare with <=, where edits count from 1; None is not as in A1111.
    """

    steps: int
    hires_steps: int = 0
    a1111_delay: int | None = None


def moments(timing: Timing) -> Iterator[Moment]:
    """The moments of a run: those of its first pass, then those of its second, if any."""
    steps, more, delay = timing.steps, timing.hires_steps, timing.a1111_delay
    for k in range(steps + more):
        second = k >= steps
        if delay is None:
            step = k - more * second
            yield Moment(step, steps, step, k - steps, more)
        else:
            turn = max(k - steps * second - delay, 0)
            yield Moment(turn + steps * second, steps, turn, turn if second else -1, more)


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
        """The text at a step, counted from 0, of a run of `steps` with one pass."""
        return self._at(Moment(step, steps, step))

    def _at(self, moment: Moment) -> Text:
        """The text at a moment.

        Neighbours of the same weight are one piece, as in A1111: "[fe|]male" is "female".
        """
        parts: list[list[tuple[list[str], float]]] = [[]]
        for piece in _pieces(self.nodes, moment):
            if piece is None:
                parts.append([])
            elif parts[-1] and parts[-1][-1][1] == piece[1]:
                parts[-1][-1][0].append(piece[0])
            else:
                parts[-1].append(([piece[0]], piece[1]))
        return tuple(tuple(("".join(words), weight) for words, weight in part) for part in parts)

    def schedule(self, timing: Timing) -> tuple[list[Text], tuple[int, ...]]:
        """The distinct texts of a run, and which of them it is at each step.

        A prompt that never changes has a schedule of a single entry.

        Raises:
            UsageError: too many texts for their length; see `MAX_WORK`.
        """
        begins: tuple[set[int], set[int]] = set(), set()  # of edits in the first and second pass
        periods = set()
        count = longest = 0
        for count, node in enumerate(_walk(self.nodes), 1):  # noqa: B007
            if isinstance(node, Edit):
                in_second, step = node.begin(timing.steps, timing.hires_steps)
                begins[in_second].add(step)
            elif isinstance(node, Alternate):
                periods.add(len(node.options))
        texts: dict[Text, int] = {}
        states: dict[tuple[int, ...], int] = {}  # the text of each state of edits and alternations
        schedule = []
        first, second = map(sorted, begins)
        for moment in moments(timing) if any((first, second, periods)) else [Moment(0, 1, 0)]:
            come = bisect(first, moment.step), bisect(second, moment.hires_step)
            state = (*come, *(moment.turn % n for n in periods))
            if state not in states:
                text = self._at(moment)
                states[state] = texts.setdefault(text, len(texts))
                size = sum(75 + sum(len(words) for words, _ in part) for part in text)
                longest = max(longest, size + count)
                if len(states) * longest > MAX_WORK:
                    raise UsageError(
                        f"a prompt of {count} brackets and words between them",
                        "changes too often for its length",
                        "shorten it, or use fewer edits, alternations and BREAKs",
                    )
            schedule.append(states[state])
        return list(texts), tuple(schedule)

    def unreached_edits(self, timing: Timing) -> list[int | float]:
        """When the edits would come that a run does not reach.

        1.0 and 2.0 are the ends of the passes, and meant to be never.
        """
        *_, last = moments(timing)
        edits = (node for node in _walk(self.nodes) if isinstance(node, Edit))
        late = (edit.when for edit in edits if not edit.has_come(last))
        return [when for when in late if isinstance(when, int) or when not in (1.0, 2.0)]


def _pieces(nodes: Iterable[Node], moment: Moment) -> Iterator[tuple[str, float] | None]:
    """Texts with their weights at a moment; None is a BREAK."""
    for node in nodes:
        match node:
            case Words(text):
                yield text, 1.0
            case Break():
                yield None
            case Weighted(inside, weight):
                for piece in _pieces(inside, moment):
                    yield piece and (piece[0], piece[1] * weight)
            case Edit(before, after):
                yield from _pieces(after if node.has_come(moment) else before, moment)
            case Alternate(options):
                yield from _pieces(options[moment.turn % len(options)], moment)


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
