"""A batch's folder that fsspec reaches: s3://bucket/apples, gs://, sftp://, memory://, ...

It has the layout of `folder.BatchFolder`. Files are put whole, and whoever writes last counts: the
same job has the same bits. Nothing can be appended to, so that a process puts its lines when it has
drawn a part of the jobs; an image without a line is known by its own metadata.
"""

import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from sdpipe.batch.folder import BLOCK, STATE, BatchFolder
from sdpipe.batch.lines import to_line
from sdpipe.errors import SdpipeError, UsageError
from sdpipe.io.files import write_error
from sdpipe.io.names import FORMATS, is_remote


def open_folder(path: str | os.PathLike[str]) -> BatchFolder:
    """A folder that a batch is drawn into: here, or where a URL says.

    Raises:
        UsageError: it is a file, cannot be written, or the package for such URLs is missing.
    """
    return RemoteFolder(os.fspath(path)) if is_remote(path) else BatchFolder(path)


class RemoteFolder(BatchFolder):
    """A folder at a URL.

    Raises:
        UsageError: the URL is of no known kind, or the package for it is missing.
        SdpipeError: it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        try:
            self._files, path = url_to_fs(self.url)
            self._files.makedirs(path, exist_ok=True)
        except (ValueError, ImportError) as error:
            remedy = "choose a folder, or install what fsspec asks for"
            raise UsageError(url, f"cannot be opened ({str(error).rstrip('.')})", remedy) from error
        except Exception as error:  # each service has errors of its own
            raise self._error(url, error) from error
        self.path = cast(Path, PurePosixPath(path))
        self.state = self.path / STATE
        self._added: list[bytes] = []

    def put(self, path: Path, data: bytes) -> bool:
        """Puts a file in place, whole; one that is there is replaced, but for the base seed."""
        if path.parent == self.state and self.exists(path):
            return False
        try:
            self._files.makedirs(str(path.parent), exist_ok=True)
            with self._files.transaction:  # where a half could be seen: under another name first
                self._files.pipe_file(str(path), data)
        except Exception as error:
            raise self._error(str(path), error) from error
        return True

    def read(self, path: Path) -> bytes:
        """The bytes of a file."""
        return cast(bytes, self._files.cat_file(str(path)))

    def exists(self, path: Path) -> bool:
        """Whether there is a file."""
        return bool(self._files.exists(str(path)))

    def check_is_there(self) -> None:
        """A URL is there whenever a file can be put."""

    @contextmanager
    def local(self, path: Path) -> Iterator[Path]:
        """A copy of a file on this machine."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, path.name)
            copy.write_bytes(self.read(path))
            yield copy

    def close(self) -> None:
        """Puts the lines that this process has added since the last time."""
        if self._added:
            name = f"{time.time_ns()}-{secrets.token_hex(4)}.jsonl"
            self.put(self.state / name, b"".join(self._added))
            self._added.clear()

    def _add(self, line: dict[str, Any]) -> None:
        self._added.append(to_line(line))

    def _listed(self) -> Iterator[tuple[Path, list[str]]]:
        self._files.invalidate_cache()
        folders = [self.path]
        for folder in folders:
            names = []
            for entry in self._files.ls(str(folder), detail=True):
                name = PurePosixPath(entry["name"]).name
                if entry["type"] == "directory":
                    if folder == self.path and len(name) >= 5 and name.isdecimal():
                        folders.append(folder / name)
                elif name[0] != "." and PurePosixPath(name).suffix in FORMATS:
                    names.append(name)
            for at in range(0, len(names), BLOCK):
                yield folder, names[at : at + BLOCK]

    def _sources(self) -> list[Path]:
        self._files.invalidate_cache()
        names: list[str] = []
        with suppress(FileNotFoundError):
            names = [PurePosixPath(name).name for name in self._files.ls(str(self.state), False)]
        lines = sorted((name for name in names if name.endswith(".jsonl")), reverse=True)
        return [*(self.state / name for name in lines), self.path / "metadata.jsonl"]

    def _lock(self) -> AbstractContextManager[object]:
        return nullcontext()

    def _claims(self) -> Iterable[Path]:
        return ()

    @contextmanager
    def _write(self, path: Path) -> Iterator[IO[bytes]]:
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            self.put(path, file.read())

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):
                self._files.rm_file(str(path))

    def _open(self, path: Path) -> IO[bytes]:
        return cast(IO[bytes], self._files.open(str(path), "rb"))

    def _error(self, path: str, error: Exception) -> SdpipeError:
        return write_error(Path(path), error, "the same command goes on")
