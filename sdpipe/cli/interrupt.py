"""Ctrl-C that ends a program within a second, whatever it is doing.

Python hears of a signal between two of its own instructions. One convolution can take longer than
a person waits, libraries have a bare `except:` that swallows it, and Python itself reports and then
drops what is raised in a `__del__` or a weak reference's callback, as every import has one. So a
thread, woken by the C part of the handler, ends a process that has not ended by itself after a
moment.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from sdpipe.io.files import remove_temporary_files

GRACE = 0.6  # seconds in which the program may put its things away
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether a signal came, and the exit status that says so: 130 for Ctrl-C, 143 for TERM."""

    status: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: unwinds the stack as Ctrl-C always does, but for that of an import.

        C++ that sets up a module calls Python, and aborts the process where that raises.
        """
        if self.status is not None:
            return  # a second one would break into the tidying up; the watcher has it
        self.status = 128 + number
        if not _is_importing(frame):
            raise KeyboardInterrupt
        signal.raise_signal(number)  # that second one: the watcher waits no more

    def end(self) -> NoReturn:
        """Ends the process at once: taking torch apart in good order costs another second."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.status or 130)


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """While this is open, SIGINT and SIGTERM raise KeyboardInterrupt, and end the process soon.

    Only the main thread of a process hears of signals: in another, this does nothing.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    inside, outside = socket.socketpair()
    outside.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(inside,), daemon=True)
    watcher.start()
    old_handlers = [signal.signal(number, interruption.handle) for number in SIGNALS]
    old_wakeup = signal.set_wakeup_fd(outside.fileno(), warn_on_full_buffer=False)
    old_report = sys.unraisablehook

    def report(unraisable: "sys.UnraisableHookArgs") -> None:
        if interruption.status is None:  # what an interrupt breaks off is no news
            old_report(unraisable)

    sys.unraisablehook = report
    try:
        yield interruption
    finally:
        sys.unraisablehook = old_report
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in zip(SIGNALS, old_handlers, strict=True):
            signal.signal(number, handler)
        outside.close()
        watcher.join()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def _watch(inside: socket.socket) -> None:
    """Waits for a signal, then for the program's end, and brings it about where it does not come.

    `inside` gets one byte for each signal, its number, and is closed when the program is done.
    """
    with inside:
        while heard := inside.recv(1):
            if heard[0] in SIGNALS:
                break
        else:
            return
        inside.settimeout(GRACE)
        with contextlib.suppress(TimeoutError):
            if not inside.recv(1):  # else a second Ctrl-C: no more patience
                return
    remove_temporary_files()
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), b"\nsdpipe: interrupted\n")
    os._exit(128 + heard[0])
