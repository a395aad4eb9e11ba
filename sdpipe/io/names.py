"""Names of the files that a run writes: the folder, free numbers, parts made from a prompt."""

import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from sdpipe.errors import UsageError
from sdpipe.values import check_choice

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FOLDER_FORMATS = tuple(suffix[1:] for suffix in FORMATS)  # of the images in a folder
OTHER_SUFFIXES = {
    *(".apng", ".avif", ".bmp", ".dds", ".eps", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif"),
    *(".jp2", ".jpe", ".jxl", ".pcx", ".pdf", ".pgm", ".ppm", ".psd", ".qoi", ".svg", ".tga"),
    *(".tif", ".tiff", ".xbm", ".xpm"),
}
SLUG_LENGTH = 40

# Names made here.
_NUMBERED = re.compile(r"(\d{4}|[1-9]\d{4,5})-[a-z0-9-]+\.(png|jpe?g|webp|steps)")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a URL."""
    return "://" in os.fspath(path)


class Destination:
    """The file names of one run's images, from `--out`.

    An `out` that ends in an image suffix is a file: several images become NAME-1, NAME-2, ...
    Anything else is a folder, in which images are numbered on from the highest number.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        count: int,
        formats: Iterable[str] = FORMATS,
        *,
        format: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """`count` is the number of images of the run, `formats` are the suffixes to accept.

        format: of the images in a folder, one of `FOLDER_FORMATS`; None is png, or what a file's
            suffix says.
        overwrite: files that are named and exist are replaced, else refused.

        Raises:
            UsageError: a file exists, its format is not supported or contradicts `format`, or the
                folder is not writable.
        """
        if format is not None:
            check_choice("format", format, FOLDER_FORMATS)
        if os.fspath(out).rstrip("/") == "-":
            raise UsageError("out='-'", "names no file", "./- is a file of that name")
        self._target = Path(out)
        self.overwrite = overwrite
        self._count = count
        suffix = self._target.suffix.lower()
        as_folder = os.fspath(out).endswith(("/", os.sep)) or os.path.isdir(out)
        self.is_file = not as_folder and suffix in formats
        if not as_folder and not self.is_file and suffix in (*FORMATS, *OTHER_SUFFIXES):
            raise UsageError(
                f"out={os.fspath(out)!r}",
                f"has the suffix {suffix}, which cannot be written",
                f"the formats are {', '.join(formats)}",
            )
        if self.is_file and format is not None and FORMATS[suffix] != FORMATS[f".{format}"]:
            raise UsageError(
                f"format={format}",
                f"contradicts the name {self._target.name}",
                f"call the file {self._target.with_suffix(f'.{format}').name}, or leave the format "
                "out",
            )
        self._suffix = format or "png"
        self.folder = self._target.parent if self.is_file else self._target
        longest = self._target if self.is_file else self._target / "0000"
        _check_name(longest.with_name(f"{longest.stem}-{count}.steps"), out)
        _check_writable(self.folder)
        self._last = 0 if self.is_file else _highest_number(self.folder)
        if self.is_file and not overwrite:
            for k in range(count):
                _check_absent(self.path(k, ""))

    def path(self, index: int, prompt: str) -> Path:
        """The preferred name of image `index`; `free_names` goes on from there."""
        if self.is_file:
            if self._count == 1:
                return self._target
            return self._target.with_stem(f"{self._target.stem}-{index + 1}")
        self._last += 1
        return self.folder / f"{self._last:04}-{slug(prompt)}.{self._suffix}"


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


def _highest_number(folder: Path) -> int:
    """The highest number in a folder; 0 in one that cannot be listed, where `write` counts on."""
    try:
        matches = [_NUMBERED.fullmatch(name) for name in os.listdir(folder)]
    except OSError:
        return 0
    return max((int(match[1]) for match in matches if match), default=0)


def _check_absent(image: Path) -> None:
    """Refuses an image that exists, or whose steps do."""
    for path in (image, steps_folder(image)):
        if os.path.lexists(path):
            raise UsageError(
                f"{path}",
                "exists already",
                "choose another name or a folder, or replace it with --overwrite (in Python "
                "overwrite=True)",
            )


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
    try:  # for root, permissions say yes where the file system says no
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise UsageError(
            f"{folder}", f"cannot be written: {error.strerror}", "choose another folder"
        ) from error
