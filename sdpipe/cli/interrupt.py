"""Ctrl-C, SIGTERM and SIGHUP end a command without a traceback: exit status 130, 143 or 129."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from sdpipe.io.files import remove_temporary_files

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last where a terminal closes


INTERRUPTED = 130
"""The exit status after Ctrl-C."""


class Interruption:
    """Whether a signal came, and the exit status for it: 128 and its number, 130 for Ctrl-C."""

    status: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: raises KeyboardInterrupt, and a second time ends the process.

        During an import it ends the process at once: C++ that sets up a module calls Python, and
        aborts the process where that raises.
        """
        is_second, self.status = self.status is not None, 128 + number
        if is_second or _is_importing(frame):
            remove_temporary_files()
            with contextlib.suppress(OSError, ValueError):
                os.write(sys.stderr.fileno(), b"\nsdpipe: interrupted\n")
            os._exit(self.status)
        raise KeyboardInterrupt


def end_process(status: int) -> NoReturn:
    """Ends the process at once: tearing torch down takes another second.

    Python would abort it where a thread is still in the middle of torch.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Handles the signals while it is open; only the main thread receives them.

    A SIGHUP that the caller ignores, as nohup does, stays ignored.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    handled = [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]
    old = {number: signal.signal(number, interruption.handle) for number in handled}
    try:
        yield interruption
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False
