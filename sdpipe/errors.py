"""Errors and warnings: each names the value, the rule that it breaks and the remedy.

The class decides the exit status of the command line: 2 for a `UsageError`, as what was typed is
wrong or not there; 1 for any other, as it could not be done.
"""

import contextlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_PACKAGE = os.path.dirname(__file__) + os.sep


class SdpipeError(Exception):
    """The root of every error that sdpipe raises on purpose. Command line: exit status 1.

    value: what was given, such as "height=500".
    rule: what it breaks, such as "is not a multiple of 8".
    remedy: what helps, such as "the nearest are 496 and 504"; may be empty.

    The message is "{value} {rule}; {remedy}.", unless the remedy is a question.
    """

    def __init__(self, value: str, rule: str = "", remedy: str = "") -> None:
        super().__init__(value, rule, remedy)  # so that pickling keeps the three
        self.value, self.rule, self.remedy = value, rule, remedy

    def __str__(self) -> str:
        if not self.rule:
            return self.value
        sentence = f"{self.value} {self.rule}{'; ' if self.remedy else ''}{self.remedy}"
        return sentence if sentence.endswith("?") else f"{sentence}."


class UsageError(SdpipeError, ValueError):
    """A value that a person gave breaks a rule. Command line: exit status 2."""


class ModelError(SdpipeError):
    """A model cannot be found, fetched or read, or does not fit what was asked of it."""


class ModelNameError(ModelError, UsageError):
    """No model, and no file of one, has the name that a person gave. Exit status 2."""


class NotFiniteError(SdpipeError):
    """A stage produced NaN or infinity; the message names the stage and the remedy."""


class SdpipeWarning(UserWarning):
    """The work goes on, but a person should know: a prompt was cut, latents grew too large."""


_listener: ContextVar[Callable[[str], object] | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Callable[[str], object]) -> Iterator[None]:
    """Calls `listener` with every warning of ours in this thread while it is open."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def warn(message: str) -> None:
    """Issues an `SdpipeWarning` for the line of code that called into this package."""
    if (listener := _listener.get()) is not None:
        listener(message)
    frame, depth, stacklevel = inspect.currentframe(), 0, 1
    while frame is not None:
        depth += 1
        if frame.f_code.co_filename.startswith(_PACKAGE):
            stacklevel = depth + 1
        frame = frame.f_back
    warnings.warn(message, SdpipeWarning, stacklevel=stacklevel)
