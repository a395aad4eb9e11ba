"""Pictures of one's own with captions, in the layout that Hugging Face calls an image folder.

    FOLDER/metadata.jsonl       {"file_name": "0001.png", "text": "a red apple"}, one a line
    FOLDER/0001.png

or metadata.csv with the columns file_name and text, or either inside FOLDER/train. Names are
relative to the metadata; a picture may have several lines, each with another caption; other keys,
and pictures that no line names, are left out. Of what the package `datasets` takes besides,
metadata.parquet and a metadata file in every folder are not read. Everything that can be wrong is
found before training begins. Nothing here imports torch.
"""

import csv
import hashlib
import json
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sdpipe.errors import UsageError
from sdpipe.prompt.vocabulary import Vocabulary
from sdpipe.training.run_folder import written

METADATA = ("metadata.jsonl", "metadata.csv")
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # EPS would run Ghostscript
MOST_PIXELS = 150_000_000


@dataclass(frozen=True)
class Entry:
    """A picture's caption, and the line of the metadata that says so, e.g. "metadata.jsonl, 3"."""

    path: Path
    name: str
    text: str
    line: str


def read_entries(folder: Path) -> list[Entry]:
    """What the metadata of a folder says, every line checked, and every picture there.

    Raises:
        UsageError: what is wrong, and in which line.
    """
    metadata = _find(folder)
    read = _csv_lines if metadata.suffix == ".csv" else _json_lines
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            entries = [_entry(metadata, number, values) for number, values in read(metadata, file)]
    except OSError as error:
        raise UsageError(f"{metadata} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{metadata} is not UTF-8 text ({error}); save it as that.") from error
    if not entries:
        raise UsageError(
            f"{metadata} names no picture; it has a line for each, such as "
            '{"file_name": "0001.png", "text": "a red apple"}.'
        )
    if missing := [entry for entry in entries if not entry.path.is_file()]:
        more = f", nor are {len(missing) - 1} more that it names" if len(missing) > 1 else ""
        raise UsageError(
            f"{missing[0].line}: the picture {missing[0].name} is not in {metadata.parent}{more}; "
            "add what is missing, or take out the lines."
        )
    return entries


def read_picture(entry: Entry, size: int) -> Image.Image:
    """The square in the middle of a picture, upright, on white, of size x size pixels, RGB.

    Raises:
        UsageError: it cannot be read.
    """
    where = f"{entry.line}: the picture {entry.name}"
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(entry.path, formats=known) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                upright = _rgb(ImageOps.exif_transpose(image))
        return ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    except Image.DecompressionBombError as error:
        raise UsageError(
            f"{where} has more than {MOST_PIXELS:,} pixels; make it smaller, or take it out."
        ) from error
    except UnidentifiedImageError as error:
        raise UsageError(
            f"{where} cannot be read: it is damaged, or of none of the formats {', '.join(known)}."
        ) from error
    except Exception as error:  # damaged files trip Pillow's parsers up in every way there is
        reason = str(error).rstrip(".") or type(error).__name__
        raise UsageError(f"{where} cannot be read: {reason}; mend it, or take it out.") from error


class ImageFolder:
    """The pictures of a folder, cut to squares, and their captions.

    `prepare` reads them, once, into the file `path`: N x size x size x 3 bytes, RGB, no header.
    """

    def __init__(self, entries: Sequence[Entry], size: int, path: Path) -> None:
        self.entries, self.size, self.path = entries, size, path

    def fingerprint(self) -> list[list[str]]:
        """Name, caption and SHA-256 of every picture: what tells one set of data from another."""
        rows = []
        for entry in self.entries:
            with entry.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            rows.append([entry.name, entry.text, digest])
        return rows

    def prepare(self, on_read: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Reads every picture, unless that was done before.

        `on_read` hears how many of how many are done.

        Raises:
            UsageError: a picture cannot be read; the message has its name and its line.
            SdpipeError: the file cannot be written.
        """
        if self.path.exists() and self.path.stat().st_size == len(self) * self.size**2 * 3:
            return
        with written(self.path) as file:
            for i, entry in enumerate(self.entries):
                file.write(read_picture(entry, self.size).tobytes())
                on_read(i + 1, len(self))

    @cached_property
    def _pixels(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.memmap(self.path, np.uint8, "r", shape=(len(self), self.size, self.size, 3))

    def __len__(self) -> int:
        return len(self.entries)

    def picture(self, i: int) -> Image.Image:
        """Picture i."""
        return Image.fromarray(np.asarray(self._pixels[i]))

    def caption(self, i: int) -> str:
        """The caption of picture i."""
        return self.entries[i].text

    def reworded(self, i: int, rng: random.Random) -> str:
        """The caption again: how else a person would say it, a folder does not tell."""
        return self.caption(i)

    def captions(self) -> list[str]:
        """All captions."""
        return [entry.text for entry in self.entries]

    def subjects(self) -> list[str]:
        """All captions: no two pictures are known to show the same."""
        return self.captions()

    def rivals(self) -> tuple["ImageFolder", list[int]]:
        """All of them, rivals of each other."""
        return self, [0] * len(self)

    def vocabulary(self) -> Vocabulary:
        """The words of the captions; a caption is no name, and stays with its pictures."""
        return Vocabulary.from_captions([], self.captions())

    def any_picture(self, rng: random.Random) -> Image.Image:
        """A part of a picture, six tenths of its side or more, every second time mirrored."""
        picture = self.picture(rng.randrange(len(self)))
        side = rng.uniform(0.6, 1.0) * self.size
        left, top = (rng.uniform(0, self.size - side) for _ in range(2))
        if rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        box = (left, top, left + side, top + side)
        return picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box)


def _find(folder: Path) -> Path:
    """The metadata of a folder."""
    if not folder.is_dir():
        raise UsageError(
            f"data={str(folder)!r} is not a folder; give the one with the pictures and their "
            f"{METADATA[0]}."
        )
    for place in (folder, folder / "train"):
        found = [place / name for name in METADATA if (place / name).is_file()]
        if len(found) > 1:
            raise UsageError(f"{place} has both {' and '.join(METADATA)}; keep one of them.")
        if found:
            return found[0]
    raise UsageError(
        f"{folder} has no {METADATA[0]}, which says what the pictures show; write one with a line "
        'for each picture, such as {"file_name": "0001.png", "text": "a red apple"}.'
    )


def _json_lines(metadata: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{metadata}, line {number} is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise UsageError(f"{metadata}, line {number} is no object with file_name and text.")
        yield number, values


def _csv_lines(metadata: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file)
    try:
        for values in reader:
            yield reader.line_num, values
    except csv.Error as error:
        raise UsageError(f"{metadata}, line {reader.line_num} is not CSV: {error}.") from error


def _entry(metadata: Path, number: int, values: dict[str, Any]) -> Entry:
    """One line of the metadata, checked for itself."""
    line = f"{metadata}, line {number}"
    for key in ("file_name", "text"):
        if key not in values:
            known = ", ".join(str(k) for k in values if k is not None) or "nothing"
            raise UsageError(f"{line} has no {key}, only {known}; it needs file_name and text.")
        value = values[key]
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{line} has {key}={value!r}; it is a text that is not empty.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{line} has a {key} that is not UTF-8 text: {value!r}.") from None
    name = values["file_name"]
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(
            f"{line}: the picture {name} is outside {metadata.parent}; file_name is relative to "
            "that folder and stays in it."
        )
    return Entry(metadata.parent / path, name, values["text"].strip(), line)


def _rgb(image: Image.Image) -> Image.Image:
    """Any picture as RGB, what is transparent on white."""
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.float32) / 257  # Pillow would cut off at 255
        return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its numbers have no agreed range, as those of 8 bits a channel have")
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
