"""What an image says of itself, as a person reads it and as JSON. Imports no torch."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdpipe.errors import SdpipeError, UsageError
from sdpipe.io.encoding import escape_control
from sdpipe.io.pixels import LOSSY_FORMATS, load_pixels, pixels_sha256
from sdpipe.metadata.read import read_record
from sdpipe.metadata.record import Record
from sdpipe.settings import DEFAULT_OF, Settings

MAX_SHOWN = 300  # characters of a value in a line; prompts are shown whole

WRITERS = {
    "sdpipe": "sdpipe",
    "A1111": "A1111's web UI, or a program that writes the same format",
}


@dataclass(frozen=True)
class Info:
    """What an image says of itself, and whether its pixels are still those that were drawn.

    sha256: of the file's pixels; None where no hash is recorded, or they cannot be decoded.
    unchanged: whether it is the recorded hash; None where that cannot be known.
    pixels: the same in words.
    command: for the grid of a sweep, the command that draws it again.
    """

    path: str
    record: Record
    sha256: str | None
    unchanged: bool | None
    pixels: str
    command: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        record = self.record
        sweep = {} if record.sweep is None else {"sweep": record.sweep, "command": self.command}
        return {
            "path": self.path,
            "source": record.source,
            "settings": record.values,
            **sweep,
            "model": {
                **record.model,
                "parts": record.parts,
                "loras": list(record.loras),
                "embeddings": list(record.embeddings),
            },
            "batch": {"n": record.n, "index": record.index},
            "versions": record.versions,
            "device": record.device,
            "dtype": record.dtype,
            "speed": record.speed,
            **({} if record.safety is None else {"safety": record.safety}),
            **({} if record.mark is None else {"mark": record.mark}),
            "pixels": {
                "recorded_sha256": record.pixels_sha256,
                "sha256": self.sha256,
                "unchanged": self.unchanged,
            },
            "extra": record.extra,
            "notes": list(record.notes),
        }

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a person to read; control characters are escaped."""
        rows = [*_rows(self.record, self.command), ("pixels", self.pixels)]
        return [(escape_control(name), escape_control(value)) for name, value in rows]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        lines = [escape_control(self.path)]
        for name, value in self.rows:
            first, *rest = value.split("\n")
            lines.append(f"  {name:<{width}}  {first}".rstrip())
            lines += [f"{'':{width + 4}}{line}" for line in rest]
        return "\n".join(lines)


def info(path: str | os.PathLike[str]) -> Info:
    """Reads what an image says of itself, and compares its pixels with the recorded hash.

    Raises:
        SdpipeError: there is no such image, it is damaged, or its metadata is missing or invalid.
    """
    record = read_record(path)
    return Info(os.fspath(path), record, *_compare_pixels(path, record))


def describe_safety(safety: Mapping[str, Any]) -> str:
    """What the model's safety checker said of an image, in words."""
    if not safety["flagged"]:
        return "not flagged by the model's safety checker"
    return "flagged by the model's safety checker; nothing was changed"


def _compare_pixels(
    path: str | os.PathLike[str], record: Record
) -> tuple[str | None, bool | None, str]:
    """The SHA-256 of a file's pixels, whether it is the recorded one, and the same in words."""
    if record.pixels_sha256 is None:
        return None, None, "no hash of them was recorded"
    try:
        image = load_pixels(path)
    except SdpipeError as error:
        return None, None, str(error)
    sha256 = pixels_sha256(image)
    if sha256 == record.pixels_sha256:
        return sha256, True, "as they were drawn"
    if image.format in LOSSY_FORMATS:
        return sha256, None, f"at best close to those that were drawn: {image.format} is lossy"
    return sha256, False, "not those that were drawn: edited, or saved again with losses"


def _rows(record: Record, command: str | None) -> Iterator[tuple[str, str]]:
    """Names and values, line by line; the prompt first."""
    values = dict(record.values)
    if record.sweep is not None:
        yield "grid of", "a sweep" if command is None else "a sweep; this draws it again:"
        if command is not None:
            yield "command", command
        values = dict(record.sweep)
    if values:
        yield "prompt", str(values.pop("prompt", ""))
    if negative := values.pop("negative_prompt", ""):
        yield "negative prompt", str(negative)
    if record.sweep is None and {"width", "height"} <= set(values):
        yield "size", _size(values.pop("width"), values.pop("height"), values.get("hires_scale"))
    if record.safety is not None:
        values["safety"] = describe_safety(record.safety)
    for name in ("seed", "steps", "g", "scheduler", *values):
        value = values.pop(name, None)
        if value is not None and value != DEFAULT_OF.get(name):
            yield name, _one_line(value, ":" if name == "g" and record.sweep is None else ",")
    yield from _rows_of_model(record)
    if record.n > 1:
        yield "batch", f"image {record.index + 1} of a batch of {record.n}"
    if record.mark is not None:
        yield "source", record.mark
    yield "written by", WRITERS.get(record.source, record.source)
    if record.versions:
        versions = (v if k == "program" else f"{k} {v}" for k, v in record.versions.items())
        yield "versions", _one_line(", ".join(versions))
    if record.device and record.dtype:
        how = f", {record.speed}" if record.speed not in (None, "default") else ""
        yield "drawn", _one_line(f"on {record.device} in {record.dtype}{how}")
    for name, value in record.extra.items():
        yield name, _one_line(value)
    for note in record.notes:
        yield "replay", note


def _rows_of_model(record: Record) -> Iterator[tuple[str, str]]:
    """The model, and what replaced a part of it or was added; of long hashes, the beginnings."""
    if record.model:
        name = record.model.get("name", "without a name")
        marks = [f"{key} {value[:12]}" for key, value in record.model.items() if key != "name"]
        yield "model", _one_line(", ".join([name, *marks]))
    for part, name in record.parts.items():
        name, at, mark = name.partition("@")
        mark = f", {mark.replace(':', ' ')[:19]}," if at else ""
        yield part, f"{_one_line(name)}{mark} in place of the model's own"
    for lora in record.loras:
        yield "lora", f"{_one_line(lora['weight'])} of {_file(lora)}"
    for embedding in record.embeddings:
        yield "embedding", f"{_one_line(embedding['word'])}, of {_file(embedding)}"


def _size(width: object, height: object, scale: object) -> str:
    """The size of the finished image, and with a second pass that of the first."""
    first = _one_line(f"{width} x {height}")
    if scale is None:
        return first
    try:
        size = Settings.from_dict(
            {"prompt": "", "width": width, "height": height, "hires_scale": scale}
        )
    except UsageError:  # a file may hold anything
        return first
    return "{} x {} from {}".format(*size.output_size, first)


def _file(file: Mapping[str, Any]) -> str:
    """A file that was added to a model."""
    return f"{_one_line(file['name'])}, sha256 {file['sha256'][:12]}"


def _one_line(value: object, separator: str = ",") -> str:
    """A value in one line of at most `MAX_SHOWN` characters."""
    if isinstance(value, Mapping):  # an image that was drawn from
        value = f"{value.get('name') or 'an image'}, SHA-256 {str(value.get('sha256'))[:12]}"
    elif isinstance(value, list):
        value = separator.join(str(each).removesuffix(".0") for each in value)
    text = "yes" if value is True else str(value).removesuffix(".0").replace("\n", " ")
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
