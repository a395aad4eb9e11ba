"""What one request asks for, and the events that tell how it goes.

Whoever reads the events is in an event loop; whoever draws is in a thread.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sdpipe.errors import SdpipeError
from sdpipe.io import png
from sdpipe.io.mark import term_for
from sdpipe.latents import latents_to_pil
from sdpipe.metadata.save import metadata_for
from sdpipe.pipeline import Result

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sdpipe.canvas import Canvas
    from sdpipe.components import Components
    from sdpipe.denoise import Step
    from sdpipe.pipeline import Pipeline
    from sdpipe.settings import ResolvedSettings


class QueueFullError(SdpipeError):
    """As many tasks wait as may. `seconds`: when to ask again."""

    def __init__(self, capacity: int, seconds: int) -> None:
        rule = f"has its {capacity} places taken"
        super().__init__("the queue", rule, f"ask again in about {seconds} s")
        self.seconds = seconds


class StoppedError(SdpipeError):
    """A task has no image, since somebody stopped it or the server ends."""


class EndingError(StoppedError):
    """The server ends."""

    def __init__(self) -> None:
        super().__init__("the server", "is being stopped", "ask again later")


@dataclass(frozen=True)
class Waiting:
    """Tasks before this one."""

    position: int


@dataclass(frozen=True)
class Progress:
    """Step `index` of `total` is done, from 0. `seconds_left`: until the images are there."""

    index: int
    total: int
    seconds_left: float


@dataclass(frozen=True, eq=False)
class Drawn:
    """Image `number` of a task, from 0: image k of a result.

    is_joined: it was drawn in one batch with images of other tasks.
    stopped_after: the steps that were taken where somebody stopped it; the image is the x_0
        predicted there.
    """

    number: int
    result: Result
    k: int
    is_joined: bool = False
    stopped_after: int | None = None

    @property
    def settings(self) -> "ResolvedSettings":
        """What it was drawn with."""
        return self.result.settings[self.k]

    def record(self) -> dict[str, Any]:
        """Its metadata, as `Result.records`; it also says if it was joined or stopped."""
        record = metadata_for(self.result, self.k)
        if self.is_joined:
            record["sdpipe"]["batch"]["joined"] = True
        if self.stopped_after is not None:
            record["sdpipe"]["stopped_after"] = self.stopped_after
        return record

    def encode(self, format: str = "PNG", *, with_metadata: bool = True) -> bytes:
        """The image as the bytes of a file; see `png.encode`."""
        record = self.record() if with_metadata else None
        mark = term_for(self.settings.init_image)
        return png.encode(self.result.images[self.k], format, record, mark)


def decode_images(parts: "Components", latents: "Tensor") -> list["Image.Image"]:
    """Latents as images, one at a time as `Pipeline` does; in the drawing thread alone."""
    with parts.on_device(parts.vae):
        return [latents_to_pil(parts.vae, z)[0] for z in latents.split(1)]


@dataclass(eq=False)
class Task:
    """What one request asks for.

    images: the settings of each. canvas: the image that they begin with.
    on_step: called in the drawing thread with each step of the task's images, numbered from 0.
    work: called in the drawing thread in place of drawing `images`, with what it has to call at
        every step; what it returns is an event.
    may_join: it may be drawn in one batch with others.
    """

    pipe: "Pipeline"
    images: "Sequence[ResolvedSettings]"
    canvas: "Canvas | None" = None
    on_step: "Callable[[Step], object] | None" = None
    work: "Callable[[Callable[[Step], object]], object] | None" = None
    may_join: bool = True
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: str = "waiting"  # then "drawing", and "finished"
    warnings: list[str] = field(default_factory=list)  # what was said while it was drawn
    submitted: float = 0.0  # by the monotonic clock
    progress: Progress | None = None
    error: Exception | None = None

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[object] = asyncio.Queue()
        self._is_stopped = self._keeps = False

    @property
    def num_steps(self) -> int:
        """The steps of the whole task, over all its images."""
        return sum(s.num_steps_taken(s.strength) for s in self.images)

    @property
    def can_join(self) -> bool:
        """Whether it may share a batch: no image to begin with, nothing that wants it alone."""
        is_plain = self.may_join and self.work is None and self.canvas is None
        return is_plain and bool(self.images) and not self.images[0].batch_invariant

    def put(self, event: object) -> None:
        """Adds an event; from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    @property
    def num_unread(self) -> int:
        """The events that nobody has read yet."""
        return self._events.qsize()

    async def events(self) -> AsyncIterator[object]:
        """The events, until the task is finished. Raises what it failed with."""
        while (event := await self._events.get()) is not None:
            yield event
        if self.error is not None:
            raise self.error

    def note(self, warning: str) -> None:
        """Keeps a warning, each once."""
        if warning not in self.warnings:
            self.warnings.append(warning)

    def stop(self, *, keep: bool = False) -> None:
        """Ends the work at the next step; with `keep` the images so far are what was drawn."""
        self._keeps, self._is_stopped = keep, True

    @property
    def is_stopped(self) -> bool:
        """Whether somebody stopped it."""
        return self._is_stopped

    @property
    def keeps_images(self) -> bool:
        """Whether the images so far are wanted."""
        return self._keeps

    def finish(self, error: Exception | None = None) -> None:
        """Says that no event follows; the first call counts."""
        if self.state != "finished":
            self.state, self.error = "finished", error
            self.put(None)


def part_of(step: "Step", first: int, end: int, start: int) -> "Step":
    """A step of the images from `first` to before `end`, counted from `start`."""
    own = slice(first - step.images.start, end - step.images.start)
    tensors = {name: getattr(step, name)[own] for name in ("input", "latents", "x0")}
    return replace(step, images=range(first - start, end - start), **tensors)
