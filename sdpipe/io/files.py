"""Where pictures go: names that are free, folders that can be written, files that appear whole.

Everything is written under a temporary name first. What is unfinished is remembered here, so that
an interrupt leaves nothing behind.
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

from sdpipe.errors import SdpipeError, UsageError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
OTHER_SUFFIXES = {
    *(".apng", ".avif", ".bmp", ".dds", ".eps", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif"),
    *(".jp2", ".jpe", ".jxl", ".pcx", ".pdf", ".pgm", ".ppm", ".psd", ".qoi", ".svg", ".tga"),
    *(".tif", ".tiff", ".xbm", ".xpm"),
}
SLUG_LENGTH = 40

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

_unfinished: set[Path] = set()


class Destination:
    """The names of one run's pictures, as `--out` asks for them.

    An `out` that ends in an image suffix is a file: several pictures become NAME-1, NAME-2, ...
    Anything else is a folder, whose pictures are numbered on from the highest number in it.
    """

    def __init__(
        self, out: str | os.PathLike[str], pictures: int, formats: Iterable[str] = FORMATS
    ) -> None:
        """`pictures` is how many the run will draw, `formats` the suffixes that they may have.

        Raises:
            UsageError: the format is not one that can be written, or the folder cannot be.
        """
        self._target = Path(out)
        self._pictures = pictures
        self._last = 0
        suffix = self._target.suffix.lower()
        as_folder = os.fspath(out).endswith(("/", os.sep)) or os.path.isdir(out)
        self._is_file = not as_folder and suffix in formats
        if not as_folder and not self._is_file and suffix in (*FORMATS, *OTHER_SUFFIXES):
            raise UsageError(
                f"{out} asks for a {suffix} file, which cannot be written; the formats are "
                f"{', '.join(formats)}."
            )
        self.folder = self._target.parent if self._is_file else self._target
        longest = self._target if self._is_file else self._target / "0000"
        _check_name(longest.with_name(f"{longest.stem}-{pictures}.steps"), out)
        _check_writable(self.folder)

    def path(self, index: int, prompt: str) -> Path:
        """The name that picture `index` of the run would like; `free_names` goes on from there."""
        if self._is_file:
            if self._pictures == 1:
                return self._target
            return self._target.with_stem(f"{self._target.stem}-{index + 1}")
        if not self._last:
            self._last = _highest_number(self.folder)
        self._last += 1
        return self.folder / f"{self._last:04}-{slug(prompt)}.png"


def write(path: Path, data: bytes) -> Path:
    """Writes a file, under `path` or the next free number after it, and returns which.

    It appears whole, with its final name, or not at all, and never in the place of another.

    Raises:
        SdpipeError: it cannot be written.
    """
    try:
        with unfinished(path.parent) as temporary:
            temporary.write_bytes(data)
            for name in free_names(path):
                try:
                    put_in_place(temporary, name)
                except FileExistsError:  # another process was faster
                    continue
                return name
    except OSError as error:
        raise SdpipeError(f"{path} cannot be written: {error.strerror}.") from error
    raise AssertionError("free names never end")


def slug(prompt: str) -> str:
    """A short piece of a file name out of any text: a-z, 0-9 and hyphens, never empty."""
    plain = unicodedata.normalize("NFKD", prompt[:1000]).encode("ascii", "ignore").decode()
    words = "-".join(re.findall("[a-z0-9]+", plain.lower()))
    if len(words) > SLUG_LENGTH:
        words = words[: SLUG_LENGTH + 1].rpartition("-")[0] or words[:SLUG_LENGTH]
    return words or "picture"


def steps_folder(picture: Path) -> Path:
    """The folder beside a picture that shows how it came about."""
    return picture.with_suffix(".steps")


def free_names(path: Path) -> Iterator[Path]:
    """`path` and the numbers after it, those left out that exist or whose `.steps` folder does.

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
def unfinished(folder: Path) -> Iterator[Path]:
    """A temporary name in `folder`, which is made if need be.

    Whatever still has that name at the end, file or folder, is removed: put it in place before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".sdpipe-{secrets.token_hex(8)}.part"
    _unfinished.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _unfinished.discard(path)


def discard_unfinished() -> None:
    """Removes what is half written: for a process that ends without unwinding its stack."""
    for path in tuple(_unfinished):
        _remove(path)


def put_in_place(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, at once, and never takes it from another file.

    Raises:
        FileExistsError: the name is taken.
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
    """Refuses what the file system takes for no name at all, mostly for its length."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{out} cannot be a name ({reason}); choose another.") from error


def _check_writable(folder: Path) -> None:
    """Refuses a folder in which no file can be made, without leaving anything there."""
    nearest = folder
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UsageError(
            f"{folder} cannot hold pictures, because {nearest} is not a folder; choose another."
        )
    try:
        # Asked by doing it: for root, permissions say yes where the file system says no.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written ({error.strerror}); choose another folder."
        ) from error
