"""Images of your own with captions, in the layout that Hugging Face calls an image folder.

    FOLDER/metadata.jsonl       {"file_name": "0001.png", "text": "a red apple"}, one a line
    FOLDER/0001.png

or metadata.csv with the columns file_name and text, or either inside FOLDER/train. Names are
relative to the metadata; an image may have several lines, each with another caption. Other keys,
and images without a line, are ignored. Of what the package `datasets` reads, metadata.parquet and a
metadata file in every folder are not supported. All errors are found before training begins.
Nothing here imports torch.
"""

import csv
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sdpipe.errors import UsageError
from sdpipe.io import pixels
from sdpipe.io.files import atomic_write
from sdpipe.prompt.vocabulary import Vocabulary
from sdpipe.training.run_folder import RESUME

MAX_PIXELS = 150_000_000
METADATA = ("metadata.jsonl", "metadata.csv")
EXAMPLE = '{"file_name": "0001.png", "text": "a red apple"}'


@dataclass(frozen=True)
class Entry:
    """An image, its caption, and where the metadata has them, such as "metadata.jsonl, line 3"."""

    path: Path
    name: str
    text: str
    line: str


def read_entries(folder: Path) -> list[Entry]:
    """Reads the metadata of a folder, and checks every line and that every image is there.

    Raises:
        UsageError: the metadata or an image is missing, or a line is wrong.
    """
    metadata = _find_metadata(folder)
    read_rows = _read_csv if metadata.suffix == ".csv" else _read_json_lines
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            entries = [_make_entry(metadata, n, row) for n, row in read_rows(metadata, file)]
    except OSError as error:
        raise UsageError(str(metadata), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            str(metadata), f"is not UTF-8 text ({error})", "save it as UTF-8"
        ) from error
    if not entries:
        raise UsageError(
            str(metadata), "names no image", f"it needs a line for each, such as {EXAMPLE}"
        )
    if missing := [entry for entry in entries if not entry.path.is_file()]:
        more = f", nor are {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UsageError(
            f"{missing[0].line}: the image {missing[0].name}",
            f"is not in {metadata.parent}{more}",
            _find_elsewhere(metadata, missing[0].name)
            or "add what is missing, or remove the lines",
        )
    return entries


def read_image(entry: Entry, size: int) -> Image.Image:
    """The central square of an image, upright, on white, of size x size pixels, RGB.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        image = pixels.read_image(entry.path, max_pixels=MAX_PIXELS)
    except UsageError as error:
        raise UsageError(
            f"{entry.line}: the image {entry.name}",
            error.rule,
            f"{error.remedy}, or remove its line",
        ) from error
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


class ImageFolder:
    """The images of a folder, cut to squares, and their captions: a `training.dataset.Dataset`.

    `prepare` reads them, once, into the file `path`: N x size x size x 3 bytes, RGB, no header.
    """

    def __init__(self, entries: Sequence[Entry], size: int, path: Path) -> None:
        self.entries, self.size, self.path = entries, size, path

    def fingerprint(self) -> list[list[str]]:
        """Name, caption and SHA-256 of every image."""
        rows = []
        for entry in self.entries:
            with entry.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            rows.append([entry.name, entry.text, digest])
        return rows

    def prepare(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Reads every image, unless that was done before; reports how many of how many are read.

        Raises:
            UsageError: an image cannot be read; the message has its name and its line.
            SdpipeError: the file cannot be written.
        """
        if self.path.exists() and self.path.stat().st_size == len(self) * self.size**2 * 3:
            return
        with atomic_write(self.path, RESUME) as file:
            for i, entry in enumerate(self.entries):
                file.write(read_image(entry, self.size).tobytes())
                progress(i + 1, len(self))

    @cached_property
    def _pixels(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.memmap(self.path, np.uint8, "r", shape=(len(self), self.size, self.size, 3))

    def __len__(self) -> int:
        return len(self.entries)

    def image(self, i: int) -> Image.Image:
        """Image i."""
        return Image.fromarray(np.asarray(self._pixels[i]))

    def augmented_image(self, rng: random.Random) -> Image.Image:
        """A square of 0.6 to 1 times the side of an image, mirrored half of the time."""
        image = self.image(rng.randrange(len(self)))
        side = rng.uniform(0.6, 1.0) * self.size
        left, top = (rng.uniform(0, self.size - side) for _ in range(2))
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        box = (left, top, left + side, top + side)
        return image.resize((self.size, self.size), Image.Resampling.BICUBIC, box)

    def caption(self, i: int) -> str:
        """The caption of image i."""
        return self.entries[i].text

    def paraphrase(self, i: int, rng: random.Random) -> str:
        """The caption itself: a folder has no paraphrases."""
        return self.caption(i)

    def captions(self) -> list[str]:
        """All captions."""
        return [entry.text for entry in self.entries]

    def vocabulary(self) -> Vocabulary:
        """The words of the captions; a caption is not a name, and is not part of the model."""
        return Vocabulary.from_captions([], self.captions())

    def subjects(self) -> list[str]:
        """All captions: each image is its own subject."""
        return self.captions()

    def balanced(self, shares: list[float] | None) -> "ImageFolder":
        """The dataset itself: it has one kind of images."""
        return self

    def contrast_groups(self) -> tuple["ImageFolder", list[int]]:
        """All images, in one group."""
        return self, [0] * len(self)

    def describe(self) -> str:
        """Number and size of the images."""
        return f"{len(self)} captioned images, {self.size} x {self.size}"


def _find_elsewhere(metadata: Path, name: str) -> str:
    """The remedy for an image that is there under a shorter or a longer path; else empty."""
    folder, parts = metadata.parent, Path(name).parts
    shorter = [Path(*parts[i:]) for i in range(1, len(parts))]
    longer = [Path(place.name, name) for place in sorted(folder.iterdir()) if place.is_dir()]
    found = next((path for path in shorter + longer if (folder / path).is_file()), None)
    if found is None:
        return ""
    return f"{found.as_posix()} is there: file_name is relative to the folder of {metadata.name}"


def _find_metadata(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(
            f"data={str(folder)!r}",
            "is not a folder",
            f"give the one with the images and their {METADATA[0]}",
        )
    for place in (folder, folder / "train"):
        found = [place / name for name in METADATA if (place / name).is_file()]
        if len(found) > 1:
            raise UsageError(str(place), f"has both {' and '.join(METADATA)}", "keep one of them")
        if found:
            return found[0]
    raise UsageError(
        str(folder),
        f"has no {METADATA[0]}",
        f"write one with a line for each image, such as {EXAMPLE}",
    )


def _read_json_lines(metadata: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{metadata}, line {number},", f"is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise UsageError(
                f"{metadata}, line {number},", "is not an object", f"write it as {EXAMPLE}"
            )
        yield number, values


def _read_csv(metadata: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file)
    try:
        for values in reader:
            yield reader.line_num, values
    except csv.Error as error:
        raise UsageError(f"{metadata}, line {reader.line_num},", f"is not CSV: {error}") from error


def _make_entry(metadata: Path, number: int, values: dict[str, Any]) -> Entry:
    """Checks one line of the metadata."""
    line = f"{metadata}, line {number}"
    for key in ("file_name", "text"):
        if key not in values:
            known = ", ".join(str(k) for k in values if k is not None) or "nothing"
            raise UsageError(f"{line},", f"has {known}, but no {key}")
        value = values[key]
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{line}: {key}={value!r}", "is not a text, or is empty")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{line}: {key}={value!r}", "is not UTF-8 text") from None
    name = values["file_name"]
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(
            f"{line}: the image {name}",
            f"is outside {metadata.parent}",
            "file_name is relative to that folder",
        )
    return Entry(metadata.parent / path, name, values["text"].strip(), line)
