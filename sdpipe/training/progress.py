"""How a training run reports: two callables, silent unless the caller passes its own."""

from collections.abc import Callable
from typing import Protocol

Log = Callable[[str], None]
"""Reports a fact in one line, such as how many images there are."""


class Progress(Protocol):
    """Reports the progress of a task."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps are done; `note` is the latest loss, if any."""


def no_progress(task: str, done: int, total: int, note: str = "") -> None:
    """Ignores progress."""


def no_log(line: str) -> None:
    """Ignores a line."""
