"""The engine: draws many jobs, each exactly once, whoever else draws them at the same time.

    for i in draw_jobs(pipe, jobs, [range(1000)], Path("out")):
        ...

Jobs are claimed batch by batch and looked for again before they are drawn. While the U-Net draws
one batch, one thread encodes the prompts of the next, and another saves the images of the last.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sdpipe.batches import Batch, batch_room, encode, num_chunks
from sdpipe.errors import NotFiniteError, UsageError
from sdpipe.io.claims import Claims
from sdpipe.settings import ResolvedSettings

if TYPE_CHECKING:
    from sdpipe.canvas import Canvas
    from sdpipe.components import Components
    from sdpipe.denoise import Step
    from sdpipe.pipeline import Pipeline, Result

T = TypeVar("T")

Numbers = Sequence[int] | NDArray[np.int64]

STALE = 900.0
"""Seconds without a sign of life after which a claim is taken over: more than the longest step."""

WINDOW = 16  # batches of which the prompts are sorted by their length


class Jobs(Protocol):
    """What the engine draws: jobs by their numbers. `save` is called in a thread of its own."""

    def settings_of(self, i: int) -> ResolvedSettings:
        """What job i is drawn with."""

    def name_of(self, i: int) -> str:
        """The name under which job i is claimed: that of its file."""

    def canvas_of(self, i: int) -> "Canvas | None":
        """The image that job i begins with; jobs of a group share it."""

    def find(self, i: int) -> bool:
        """Whether the image of job i is there by now."""

    def save(self, i: int, result: "Result", k: int) -> None:
        """Puts image k of a result in place as that of job i."""

    def fail(self, i: int, error: Exception) -> None:
        """Notes that job i has no image."""


def run_behind(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Runs each task in a thread while the next one comes, and yields what they return, in order.

    An error of a task is raised before the next one begins. Whatever ends the loop, the task that
    runs comes to its end first.
    """
    with ThreadPoolExecutor(1, "save") as pool:
        running = None
        for task in tasks:
            if running is not None:
                yield running.result()
            running = pool.submit(task)
        if running is not None:
            yield running.result()


def draw_jobs(
    pipe: "Pipeline",
    jobs: Jobs,
    groups: Iterable[Numbers],
    claims_folder: Path,
    *,
    most: int | None = None,
    on_step: "Callable[[Step], object] | None" = None,
    on_wait: Callable[[], object] = lambda: time.sleep(1),
    stale: float = STALE,
) -> Iterator[int]:
    """Draws jobs, and yields the number of each whose image is in place; a batch later at most.

    What another process draws at the same time is waited for, and drawn here if that process ends
    without, or shows no sign of life.

    groups: the numbers of jobs that are alike in all but prompts and seeds.
    most: images drawn at once, at most; None is as many as the device takes.
    on_step: called with every step.
    on_wait: called again and again while only jobs of other processes are missing.
    stale: seconds without a sign of life after which another's claim counts no more.

    Raises:
        SdpipeError: an image cannot be written; ModelError: of the model's safety checker.
    """
    with Claims(claims_folder) as claims, ThreadPoolExecutor(1, "encode") as encoder:
        run = _Run(pipe, jobs, claims, encoder, most, on_step)
        waiting: Iterable[list[int]] = (part for group in groups for part in run.split(group))
        signs: dict[int, tuple[int | None, float]] = {}
        while True:
            elsewhere: list[list[int]] = []
            for saved in run_behind(run.tasks(waiting, elsewhere)):
                yield from saved
            if not elsewhere:
                return
            on_wait()
            for i in (i for numbers in elsewhere for i in numbers):
                sign, now = claims.sign(jobs.name_of(i)), time.monotonic()
                if i not in signs or signs[i][0] != sign:
                    signs[i] = (sign, now)
                elif sign is not None and now - signs[i][1] > stale:
                    run.unclaimed.add(i)
            waiting = elsewhere


class Room:
    """How many images are drawn at once: as many as are fast, or as memory was found to hold.

    most: at most.
    """

    def __init__(self, parts: "Components", most: int | None = None) -> None:
        self._parts, self._most = parts, most
        self._found: dict[tuple[int, int], int] = {}

    def limit(self, settings: ResolvedSettings) -> int:
        """How many images of these settings."""
        if settings.batch_invariant:
            return 1
        room = batch_room(self._parts, settings)
        return min(self._most or room, self._found.get(settings.output_size, room))

    def learn(self, settings: ResolvedSettings, largest: int) -> None:
        """Keeps in mind that memory holds no more than `largest` images of this size."""
        self._found[settings.output_size] = largest


@dataclass
class _Claimed:
    """Jobs that are claimed and not there, and the batches that they are drawn in."""

    numbers: list[int]
    batches: list[Batch]
    names: list[str]


class _Run:
    """One run of the engine.

    unclaimed: jobs that are drawn although another process claims them.
    """

    def __init__(
        self,
        pipe: "Pipeline",
        jobs: Jobs,
        claims: Claims,
        encoder: ThreadPoolExecutor,
        most: int | None,
        on_step: "Callable[[Step], object] | None",
    ) -> None:
        self._pipe, self._jobs, self._claims, self._encoder = pipe, jobs, claims, encoder
        self._room, self._most, self._on_step = Room(pipe.components, most), most, on_step
        self.unclaimed: set[int] = set()

    def split(self, group: Numbers) -> Iterator[list[int]]:
        """Parts of a group of which each is a batch: their prompts have equally many chunks."""
        at = 0
        while at < len(group):
            first = self._jobs.settings_of(int(group[at]))
            width = WINDOW * self._room.limit(first)
            sized: dict[int, list[int]] = {}
            for i in map(int, group[at : at + width]):
                try:
                    chunks = num_chunks(self._pipe.components, self._jobs.settings_of(i))
                except UsageError as error:
                    self._jobs.fail(i, error)
                else:
                    sized.setdefault(chunks, []).append(i)
            for numbers in sized.values():
                while numbers:
                    most = self._room.limit(first)  # which falls where memory runs out
                    yield numbers[:most]
                    numbers = numbers[most:]
            at += width

    def tasks(
        self, parts: Iterable[list[int]], elsewhere: list[list[int]]
    ) -> Iterator[Callable[[], list[int]]]:
        """Draws parts, and yields for each result what saves it and returns the jobs' numbers.

        elsewhere: gets the jobs that other processes claim.
        """
        ahead: _Claimed | None = None
        for claimed in self._claim(parts, elsewhere):
            if ahead is not None:
                yield from self._draw(ahead)
            ahead = claimed
        if ahead is not None:
            yield from self._draw(ahead)

    def _claim(self, parts: Iterable[list[int]], elsewhere: list[list[int]]) -> Iterator[_Claimed]:
        """Claims parts, looks for them again, and begins to encode their prompts."""
        for numbers in parts:
            names = {self._jobs.name_of(i): i for i in numbers}
            taken = self._claims.take(names)
            mine = [names[name] for name in taken]
            mine += [i for i in numbers if i in self.unclaimed and i not in mine]
            missing = [i for i in mine if not self._jobs.find(i)]
            if others := [i for i in numbers if i not in mine]:
                elsewhere.append(others)
            if not missing:
                self._claims.release(taken)
                continue
            images = [self._jobs.settings_of(i) for i in missing]
            batches = self._pipe.split(images, self._most or len(images))
            parts_of = self._pipe.components
            if not parts_of.low_memory:  # where only one network is on the device at a time
                future = self._encoder.submit(encode, parts_of, batches[0])
                batches[0] = replace(batches[0], embeddings=future)
            yield _Claimed(missing, batches, taken)

    def _draw(self, claimed: _Claimed) -> Iterator[Callable[[], list[int]]]:
        numbers, overflowed, largest = claimed.numbers, False, 0

        def fail(k: int, error: Exception) -> None:
            nonlocal overflowed
            overflowed |= isinstance(error, NotFiniteError)
            self._jobs.fail(numbers[k], error)

        def beat(step: "Step") -> None:
            self._claims.beat()
            if self._on_step is not None:
                self._on_step(step)

        canvas = self._jobs.canvas_of(numbers[0])
        asked = max(map(len, claimed.batches))
        settings = claimed.batches[0].settings[0]
        for result in self._pipe.draw_batches(claimed.batches, canvas, beat, fail):
            largest = max(largest, result.batch_positions[0][1])
            yield partial(self._save, numbers, result)
        if 0 < largest < asked and not overflowed:
            self._room.learn(settings, largest)
        yield partial(self._release, claimed.names)

    def _save(self, numbers: Sequence[int], result: "Result") -> list[int]:
        jobs = [numbers[number] for number in result.numbers]
        for k, i in enumerate(jobs):
            self._jobs.save(i, result, k)
        return jobs

    def _release(self, names: Sequence[str]) -> list[int]:
        self._claims.release(names)
        return []
