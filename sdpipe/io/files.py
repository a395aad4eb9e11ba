"""Files that appear whole, or not at all.

Everything is written under a temporary name first. This module keeps a list of them, so that an
interrupt leaves no half-written file.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sdpipe.errors import SdpipeError
from sdpipe.io.names import free_names

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

DAY = 24 * 60 * 60  # seconds

_unfinished: set[Path] = set()
_cleared: set[Path] = set()


def write(path: Path, data: bytes, *, overwrite: bool = False) -> Path:
    """Writes a file, at `path` or under the next free number, and returns its path.

    The file appears whole, synced to disk, or not at all. No existing file is replaced, but one at
    `path` to `overwrite`.

    Raises:
        SdpipeError: the file cannot be written.
    """
    try:
        with temporary_path(path.parent) as temporary:
            _write_synced(temporary, data)
            if overwrite:
                os.replace(temporary, path)
            else:
                path = _put_under_a_free_name(temporary, path)
            _sync_folder(path.parent)
            return path
    except OSError as error:
        raise SdpipeError(f"{path}", f"cannot be written: {error.strerror}") from error


def write_once(path: Path, data: bytes, remedy: str = "") -> bool:
    """Writes a file whole, unless there is one; returns whether it did.

    remedy: of the error.

    Raises:
        SdpipeError: the file cannot be written.
    """
    try:
        with temporary_path(path.parent) as temporary:
            _write_synced(temporary, data)
            try:
                put_in_place(temporary, path)
            except FileExistsError:
                return False
        _sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error, remedy) from error
    return True


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put_under_a_free_name(temporary: Path, path: Path) -> Path:
    for name in free_names(path):
        try:
            put_in_place(temporary, name)
        except FileExistsError:  # another process was faster
            continue
        return name
    raise AssertionError("free names never end")


def _sync_folder(folder: Path) -> None:
    """Has a new name last through a power cut; where folders cannot be synced it may not."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextlib.contextmanager
def temporary_path(folder: Path) -> Iterator[Path]:
    """Yields a temporary name in `folder`, which is created if necessary.

    A file or folder that still has this name at the end is removed. So are, when a process first
    writes into a folder, those of processes that were killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in _cleared:
        _cleared.add(folder)
        _remove_abandoned(folder)
    path = folder / f".sdpipe-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.part"
    _unfinished.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _unfinished.discard(path)


def _remove_abandoned(folder: Path) -> None:
    """Removes temporary files whose process has ended; of other machines, those a day old."""
    with contextlib.suppress(OSError):
        for path in folder.glob(".sdpipe-*.part"):
            match = re.fullmatch(r"\.sdpipe-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part", path.name)
            is_here = match is not None and match[1] == _machine()
            is_old = time.time() - path.lstat().st_mtime > DAY
            if is_old or (is_here and match is not None and not _is_alive(int(match[2]))):
                _remove(path)


@functools.cache
def _machine() -> str:
    """Eight digits for what process numbers count within: a start of a machine, a container."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("".join(facts).encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def remove_temporary_files() -> None:
    """Removes temporary_path files: for a process that ends without unwinding its stack."""
    for path in tuple(_unfinished):
        _remove(path)


def put_in_place(temporary: Path, path: Path) -> None:
    """Renames a finished file to `path` in one step, and never replaces another file.

    Raises:
        FileExistsError: `path` exists.
    """
    try:
        os.link(temporary, path)  # fails where a rename would overwrite
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if _rename_without_replacement(temporary, path):
            return
        # No hard links here (FAT, some network folders): claim the name, then replace the claim.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            temporary.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _rename_without_replacement(old: Path, new: Path) -> bool:
    """Renames in one step where the kernel can (renameat2 of Linux). Returns whether it did.

    Raises:
        FileExistsError: `new` exists.
    """
    here, no_replace = -100, 1  # AT_FDCWD, RENAME_NOREPLACE
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(here, os.fsencode(old), here, os.fsencode(new), no_replace) == 0:
        return True
    if ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
    return False


@contextlib.contextmanager
def atomic_write(path: Path, remedy: str = "") -> Iterator[IO[bytes]]:
    """Opens a file for writing under a temporary name, and renames it to `path` once it is whole.

    The temporary name is always the same: however often a process is killed, it leaves one file.

    Raises:
        SdpipeError: it cannot be written; a file at `path` stays as it was. It has this remedy.
    """
    partial = path.with_name(path.name + ".partial")
    _unfinished.add(partial)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except SdpipeError:
        raise
    except Exception as error:
        if _os_error(error) is None:
            raise
        raise write_error(path, error, remedy) from error
    finally:
        _remove(partial)
        _unfinished.discard(partial)


def write_error(path: Path, error: Exception, remedy: str = "") -> SdpipeError:
    """The error to raise for a file that cannot be written, with the system's reason."""
    cause = _os_error(error)
    reason = (cause and cause.strerror) or str(error).rstrip(".")
    return SdpipeError(str(path), f"cannot be written ({reason})", remedy)


def _os_error(error: BaseException | None) -> OSError | None:
    """The system's error behind another: torch raises its own, which does not say why."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
