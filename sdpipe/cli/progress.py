"""What a person watches while they wait: on standard error, and only on a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdpipe.denoise import Step


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Shows a line while something takes its time, and takes it away again."""
    if not sys.stderr.isatty():
        yield
        return
    print(text, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\x1b[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with it/s, moved by a call with how many of how many are done."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from tqdm import tqdm

    begin = f"{text} ..."  # how much there is to do is known when some of it is done
    with tqdm(desc=text, file=sys.stderr, dynamic_ncols=True, bar_format=begin) as shown:

        def move(done: int, total: int) -> None:
            shown.bar_format, shown.total = None, total
            shown.update(done - shown.n)

        yield move


@contextlib.contextmanager
def step_bar(pictures: int) -> Iterator[Callable[["Step"], None]]:
    """The same for the denoising steps of so many images, batch by batch: a consumer of `Step`."""
    with bar("drawing" if pictures == 1 else f"drawing {pictures} images") as move:

        def count(step: "Step") -> None:
            before = step.images.start * step.total
            move(before + len(step.images) * (step.index + 1), pictures * step.total)

        yield count
