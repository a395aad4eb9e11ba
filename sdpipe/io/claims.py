"""Claims: which names in a folder a process works on, so that others leave them alone.

A claim is a locked file beside the name. The system releases the lock when its process ends,
however it ends, so that no claim outlives its owner. A claim only saves work: whoever has one looks
again whether its file is there, and files are put in place in one step that replaces nothing.
Where locks don't reach, as on some network folders, two machines may do the same work, no more.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from sdpipe.io.files import write_error

BEAT = 5.0  # seconds between two signs of life


class Claims:
    """The claims of a process in a folder; closing gives them all back."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._held: dict[str, FileLock] = {}
        self._last_beat = time.monotonic()

    def take(self, names: Iterable[str]) -> list[str]:
        """Claims those of the names that nobody has claimed, and returns them.

        Raises:
            SdpipeError: the folder cannot be written.
        """
        taken = []
        for name in names:
            # Another thread may give it back: the one that has written the file.
            lock = FileLock(self._path(name), blocking=False, thread_local=False)
            try:
                lock.acquire()
            except Timeout:
                continue
            except OSError as error:
                raise write_error(self._folder, error) from error
            self._held[name] = lock
            taken.append(name)
        return taken

    def release(self, names: Iterable[str]) -> None:
        """Gives claims back."""
        for name in names:
            if (lock := self._held.pop(name, None)) is not None:
                self._path(name).unlink(missing_ok=True)
                lock.release()

    def beat(self) -> None:
        """Shows others that the owner of these claims still works; see `sign`."""
        if time.monotonic() - self._last_beat > BEAT:
            self._last_beat = time.monotonic()
            for name in tuple(self._held):
                with contextlib.suppress(OSError):
                    os.utime(self._path(name))

    def sign(self, name: str) -> int | None:
        """A number that changes while the owner of a claim works; None if nobody claims it.

        It is the file's own time, which nobody compares with a clock: clocks jump.
        """
        try:
            return self._path(name).stat().st_mtime_ns
        except OSError:
            return None

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return self._folder / f".sdpipe-{digest}.claim"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release(tuple(self._held))


@contextlib.contextmanager
def claim(folder: Path, names: Iterable[str]) -> Iterator[list[str]]:
    """Claims those of the names that nobody has claimed, until the block ends."""
    with Claims(folder) as claims:
        yield claims.take(names)
