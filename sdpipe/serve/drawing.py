"""One thread that draws, and the bounded queue before it.

    Drawing(capacity=64).submit(task := Task(pipe, images))
    async for event in task.events():
        ...

A task's events are `Waiting`, `Progress`, what its `on_step` puts there, and its images as `Drawn`.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from sdpipe.batch.engine import Room
from sdpipe.batches import common_settings
from sdpipe.errors import SdpipeError, listening
from sdpipe.pipeline import Result
from sdpipe.serve.task import (
    Drawn,
    EndingError,
    Progress,
    QueueFullError,
    StoppedError,
    Task,
    Waiting,
    decode_images,
    part_of,
)

if TYPE_CHECKING:
    from sdpipe.denoise import Step
    from sdpipe.pipeline import Pipeline

log = logging.getLogger(__name__)


@dataclass
class Counts:
    """What a server has done since it began."""

    images: int = 0
    steps: int = 0  # of each image
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    tasks: int = 0
    seconds: float = 0.0  # spent drawing
    waited: float = 0.0  # by tasks that were begun


class _Stopped(Exception):  # noqa: N818
    """Nobody wants the images of this run."""


class Drawing:
    """The queue and the thread, which begins with the first task.

    capacity: tasks that may wait. join: draw waiting tasks that go together as one batch.
    """

    def __init__(self, capacity: int = 64, *, join: bool = False) -> None:
        self.capacity, self.join = capacity, join
        self.counts = Counts()
        self.current: list[Task] = []
        self._waiting: deque[Task] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ends = False
        self._rooms: dict[int, Room] = {}
        self._pace = 1.0  # seconds a step of one image takes
        self._before = 0.0  # when the last step was done

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, task: Task) -> None:
        """Puts a task at the end of the queue.

        Raises:
            QueueFullError: it is full.
            StoppedError: the server ends.
        """
        with self._changed:
            if self._ends:
                raise EndingError()
            if len(self._waiting) >= self.capacity:
                self.counts.refused += 1
                raise QueueFullError(self.capacity, self.seconds_left())
            self._waiting.append(task)
            task.submitted = time.monotonic()
            task.put(Waiting(len(self._waiting) - 1 + len(self.current)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="draw", daemon=True)
                self._thread.start()
            self._changed.notify()

    def seconds_left(self) -> int:
        """An estimate of when what waits by now is drawn; at least 1."""
        steps = sum(task.num_steps for task in self._waiting)
        for task in self.current:
            steps += task.num_steps - (0 if task.progress is None else task.progress.index + 1)
        return max(1, math.ceil(steps * self._pace))

    def cancel(self, task: Task, *, keep: bool = False) -> None:
        """Ends a task: one that waits at once, one that is being drawn at its next step."""
        task.stop(keep=keep)
        with self._changed:
            if task in self._waiting:
                self._waiting.remove(task)
                self._tell_positions()
                self._end(task)

    def close(self) -> None:
        """Takes no task any more, and ends those that wait; what is being drawn goes on."""
        with self._changed:
            self._ends = True
            for task in self._waiting:
                task.finish(EndingError())
            self._waiting.clear()
            self._changed.notify()

    def drain(self, seconds: float) -> None:
        """As `close`; what is being drawn has so many seconds to come to its end."""
        self.close()
        if self._thread is not None:
            self._thread.join(seconds)
        self.abort()

    def abort(self) -> None:
        """Ends what is being drawn as well."""
        self.close()
        for task in list(self.current):
            task.finish(EndingError())
        if self._thread is not None:
            self._thread.join(10)

    def _run(self) -> None:
        while tasks := self._take():
            started = time.monotonic()
            try:
                self._draw(tasks)
            except _Stopped:
                pass
            except Exception as error:
                if not isinstance(error, SdpipeError):
                    log.exception("drawing failed")
                self._fail(tasks, error)
            self.counts.seconds += time.monotonic() - started
            for task in tasks:
                self._end(task)
            self.current = []

    def _take(self) -> list[Task]:
        """Waits for the next tasks: one, or all that are drawn together; none is the end."""
        with self._changed:
            while not self._waiting and not self._ends:
                self._changed.wait()
            if not self._waiting:
                return []
            tasks = [self._waiting.popleft()]
            if self.join and tasks[0].can_join:
                tasks += self._find_alike(tasks[0])
                self._waiting = deque(task for task in self._waiting if task not in tasks)
            self.current = tasks
            self._tell_positions()
        for task in tasks:
            task.state = "drawing"
            self.counts.tasks += 1
            self.counts.waited += time.monotonic() - task.submitted
        return tasks

    def _find_alike(self, first: Task) -> list[Task]:
        """The waiting tasks that go together with one, as many as fit into its batch."""
        alike, kind = [], common_settings(first.images[0])
        free = self._room(first.pipe).limit(first.images[0]) - len(first.images)
        for task in self._waiting:
            fits = len(task.images) <= free and task.pipe is first.pipe and task.can_join
            if fits and common_settings(task.images[0]) == kind:
                alike.append(task)
                free -= len(task.images)
        return alike

    def _room(self, pipe: "Pipeline") -> Room:
        return self._rooms.setdefault(id(pipe.components), Room(pipe.components))

    def _tell_positions(self) -> None:
        for k, task in enumerate(self._waiting):
            task.put(Waiting(k + len(self.current)))

    def _draw(self, tasks: list[Task]) -> None:
        first, at = tasks[0], 0
        places: list[tuple[Task, int]] = []
        see = partial(self._see, places=places)
        for task in tasks:
            places.append((task, at))
            at += len(task.images)
        if first.work is not None:
            first.put(first.work(see))
            return
        images = [settings for task in tasks for settings in task.images]

        def fail(i: int, error: Exception) -> None:
            self._fail([_owner(places, i)[0]], error)

        most, batches = self._room(first.pipe).limit(images[0]), []
        for task in tasks:  # what is said of its prompts is for it alone
            with listening(task.note):
                batches = first.pipe.split(task.images, most)
        if tasks[1:]:
            batches = first.pipe.split(images, most)

        def warn_all(message: str) -> None:
            for task in tasks:
                task.note(message)

        with listening(warn_all):
            for result in first.pipe.draw_batches(batches, first.canvas, see, fail):
                self._hand_out(result, places)
                if all(task.state == "finished" for task in tasks):
                    return

    def _hand_out(self, result: Result, places: list[tuple[Task, int]]) -> None:
        """Gives the images of a batch to their tasks, and ends those that somebody stopped."""
        owners = [_owner(places, i) for i in result.numbers]
        is_joined = len({task.id for task, _ in owners}) > 1
        for k, (task, start) in enumerate(owners):
            if task.state == "drawing":
                self.counts.images += 1
                task.put(Drawn(result.numbers[k] - start, result, k, is_joined))
        for task, _ in places:
            if task.is_stopped:
                self._end(task)

    def _see(self, step: "Step", places: list[tuple[Task, int]]) -> None:
        """Hands a step on to the tasks whose images it holds, and ends what nobody wants."""
        now = time.monotonic()
        self.counts.steps += len(step.images)
        if step.index:
            pace = (now - self._before) / len(step.images)
            self._pace = 0.8 * self._pace + 0.2 * pace
        self._before = now
        left = (step.total - step.index - 1) * self._pace * len(step.images)
        for task, start in places:
            own = [i for i in step.images if start <= i < start + max(len(task.images), 1)]
            if not own or task.state != "drawing":
                continue
            part = part_of(step, own[0], own[-1] + 1, start)
            if task.is_stopped and not (task.keeps_images and step.is_last):
                if task.keeps_images:
                    self._keep(task, part, len(step.images), own[0] - step.images.start)
                self._end(task)
                continue
            task.progress = Progress(step.index, step.total, left)
            task.put(task.progress)
            try:
                if task.on_step is not None:
                    task.on_step(part)
            except Exception as error:  # the others of the batch go on
                log.exception("a step could not be shown")
                self._fail([task], error)
        if all(task.state == "finished" for task, _ in places):
            raise _Stopped

    def _keep(self, task: Task, step: "Step", size: int, first: int) -> None:
        """Makes images of the x_0 that a task has come to."""
        images = decode_images(task.pipe.components, step.x0)
        if task.canvas is not None:
            images = [task.canvas.composite(image) for image in images]
        settings = [task.images[i] for i in step.images]
        positions = [(first + k, size) for k in range(len(images))]
        result = Result(images, settings, list(step.images), positions, pipeline=task.pipe)
        for k, number in enumerate(step.images):
            joined = size > len(images)
            task.put(Drawn(number, result, k, joined, stopped_after=step.index + 1))

    def _end(self, task: Task) -> None:
        if task.state == "finished":
            return
        self.counts.cancelled += task.is_stopped
        stopped = task.is_stopped and not task.keeps_images
        task.finish(StoppedError("the request", "was stopped") if stopped else None)

    def _fail(self, tasks: Sequence[Task], error: Exception) -> None:
        for task in tasks:
            self.counts.failed += task.state != "finished"
            task.finish(error)


def _owner(places: Sequence[tuple[Task, int]], number: int) -> tuple[Task, int]:
    """The task to which an image of a run belongs, and the number of its first image there."""
    return next(place for place in reversed(places) if place[1] <= number)
