"""Where images are saved: free names, writable folders, files that appear whole.

Everything is written under a temporary name first. This module keeps a list of them, so that an
interrupt leaves no half-written file.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from sdpipe.errors import SdpipeError, UsageError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
OTHER_SUFFIXES = {
    *(".apng", ".avif", ".bmp", ".dds", ".eps", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif"),
    *(".jp2", ".jpe", ".jxl", ".pcx", ".pdf", ".pgm", ".ppm", ".psd", ".qoi", ".svg", ".tga"),
    *(".tif", ".tiff", ".xbm", ".xpm"),
}
SLUG_LENGTH = 40
OTHER_FOLDER = "choose another folder"

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

_unfinished: set[Path] = set()


class Destination:
    """The file names of one run's images, from `--out`.

    An `out` that ends in an image suffix is a file: several images become NAME-1, NAME-2, ...
    Anything else is a folder, in which images are numbered on from the highest number.
    """

    def __init__(
        self, out: str | os.PathLike[str], count: int, formats: Iterable[str] = FORMATS
    ) -> None:
        """`count` is the number of images of the run, `formats` are the suffixes to accept.

        Raises:
            UsageError: the format is not supported, or the folder is not writable.
        """
        self._target = Path(out)
        self._count = count
        self._last = 0
        suffix = self._target.suffix.lower()
        as_folder = os.fspath(out).endswith(("/", os.sep)) or os.path.isdir(out)
        self._is_file = not as_folder and suffix in formats
        if not as_folder and not self._is_file and suffix in (*FORMATS, *OTHER_SUFFIXES):
            raise UsageError(
                f"out={os.fspath(out)!r}",
                f"has the suffix {suffix}, which cannot be written",
                f"the formats are {', '.join(formats)}",
            )
        self.folder = self._target.parent if self._is_file else self._target
        longest = self._target if self._is_file else self._target / "0000"
        _check_name(longest.with_name(f"{longest.stem}-{count}.steps"), out)
        _check_writable(self.folder)

    def path(self, index: int, prompt: str) -> Path:
        """The preferred name of image `index`; `free_names` goes on from there."""
        if self._is_file:
            if self._count == 1:
                return self._target
            return self._target.with_stem(f"{self._target.stem}-{index + 1}")
        if not self._last:
            self._last = _highest_number(self.folder)
        self._last += 1
        return self.folder / f"{self._last:04}-{slug(prompt)}.png"


def write(path: Path, data: bytes) -> Path:
    """Writes a new file, at `path` or under the next free number, and returns its path.

    The file appears whole, synced to disk, or not at all. No existing file is replaced.

    Raises:
        SdpipeError: the file cannot be written.
    """
    try:
        with temporary_path(path.parent) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            for name in free_names(path):
                try:
                    put_in_place(temporary, name)
                except FileExistsError:  # another process was faster
                    continue
                return name
    except OSError as error:
        raise SdpipeError(f"{path}", f"cannot be written: {error.strerror}") from error
    raise AssertionError("free names never end")


def slug(prompt: str) -> str:
    """A short part of a file name from any text: a-z, 0-9 and hyphens, never empty."""
    plain = unicodedata.normalize("NFKD", prompt[:1000]).encode("ascii", "ignore").decode()
    words = "-".join(re.findall("[a-z0-9]+", plain.lower()))
    if len(words) > SLUG_LENGTH:
        words = words[: SLUG_LENGTH + 1].rpartition("-")[0] or words[:SLUG_LENGTH]
    return words or "image"


def steps_folder(image: Path) -> Path:
    """The folder beside an image that holds its steps."""
    return image.with_suffix(".steps")


def free_names(path: Path) -> Iterator[Path]:
    """Yields `path` and the numbers after it, except those whose file or `.steps` folder exists.

    apple.png is followed by apple-1.png, and apple-1.png by apple-2.png.
    """
    if match := re.fullmatch(r"(.+)-(\d+)", path.stem):
        name, width, number = match[1], len(match[2]), int(match[2])
    else:
        name, width, number = path.stem, 1, 0
    while True:
        if not os.path.lexists(path) and not os.path.lexists(steps_folder(path)):
            yield path
        number += 1
        path = path.with_stem(f"{name}-{number:0{width}}")


@contextlib.contextmanager
def temporary_path(folder: Path) -> Iterator[Path]:
    """Yields a temporary name in `folder`, which is created if necessary.

    A file or folder that still has this name at the end is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".sdpipe-{secrets.token_hex(8)}.part"
    _unfinished.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _unfinished.discard(path)


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
        # No hard links here (FAT, some network folders): claim the name, then replace the claim.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            temporary.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


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


def _highest_number(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    matches = (re.match(r"(\d{4,9})-", name) for name in os.listdir(folder))
    return max((int(match[1]) for match in matches if match), default=0)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _check_name(path: Path, out: str | os.PathLike[str]) -> None:
    """Refuses names that the file system does not accept, mostly for their length."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"out={os.fspath(out)!r}", f"is not a valid file name ({reason})", "choose another"
        ) from error


def _check_writable(folder: Path) -> None:
    """Refuses a folder in which no file can be created, without leaving anything there."""
    nearest = folder
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UsageError(
            f"{folder}", f"cannot be written: {nearest} is not a folder", "choose another folder"
        )
    try:
        # Tried, not asked: for root, permissions say yes where the file system says no.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UsageError(
            f"{folder}", f"cannot be written: {error.strerror}", "choose another folder"
        ) from error
