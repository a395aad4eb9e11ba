"""What a picture tells of itself, as a person reads it and as JSON. Loads no torch."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sdpipe.cli.console import marked
from sdpipe.errors import SdpipeError, UsageError
from sdpipe.io.pixels import load_pixels, pixels_sha256
from sdpipe.metadata.read import read_record
from sdpipe.metadata.record import Record
from sdpipe.settings import Settings

MAX_SHOWN = 300  # characters of a value in a line; prompts are shown whole
ZERO_WIDTH_JOINER = "\u200d"  # no sign of its own, but inside many an emoji

WRITERS = {
    "sdpipe": "sdpipe",
    "A1111": "A1111's web UI, or a program that writes like it",
    "InvokeAI": "InvokeAI",
}


@dataclass(frozen=True)
class Info:
    """What a picture tells, and whether its pixels are still those that were drawn.

    found: the SHA-256 of the file's pixels; None where it was not looked for.
    same: whether that is the recorded one; None where it can't be told.
    pixels: the same in words.
    """

    path: str
    record: Record
    found: str | None
    same: bool | None
    pixels: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        told, sweep = asdict(replace(self.record, sweep=None)), self.record.sweep
        drawn = (
            {}
            if sweep is None
            else {"sweep": sweep.to_dict(), "command": sweep_command(self.record)}
        )
        return {
            "path": self.path,
            "source": told["source"],
            "settings": told["values"],
            **drawn,
            "model": {
                **told["model"],
                "parts": told["parts"],
                "loras": list(told["loras"]),
                "embeddings": list(told["embeddings"]),
            },
            "batch": {"n": told["n"], "index": told["index"]},
            "versions": told["versions"],
            "device": told["device"],
            "dtype": told["dtype"],
            "speed": told["speed"],
            **({} if told["safety"] is None else {"safety": told["safety"]}),
            "pixels": {
                "recorded_sha256": told["pixels_sha256"],
                "sha256": self.found,
                "same": self.same,
            },
            "others": told["others"],
            "remarks": list(told["remarks"]),
        }

    def __str__(self) -> str:
        rows = [*_rows(self.record), ("pixels", self.pixels)]
        width = max(len(plain(name)) for name, _ in rows)
        lines = [plain(self.path)]
        for name, value in rows:
            first, *more = plain(value).split("\n")
            lines.append(f"  {plain(name):<{width}}  {first}".rstrip())
            lines += [f"{'':{width + 4}}{line}" for line in more]
        return "\n".join(lines)


def info(path: str | os.PathLike[str]) -> Info:
    """Reads what a picture tells, whoever drew it, and holds its pixels against their hash.

    Raises:
        SdpipeError: there is no such picture, it is damaged, it tells nothing, or nonsense.
    """
    record = read_record(path)
    return Info(os.fspath(path), record, *_pixels(path, record))


def plain(text: str) -> str:
    """A text from anybody without what would steer a terminal."""
    return "".join(
        sign
        if sign.isprintable() or sign in ("\n", ZERO_WIDTH_JOINER)
        else sign.encode("unicode_escape").decode()
        for sign in text
    )


def _pixels(path: str | os.PathLike[str], record: Record) -> tuple[str | None, bool | None, str]:
    if record.pixels_sha256 is None:
        return None, None, "no hash of them was recorded"
    try:
        image = load_pixels(path)
    except SdpipeError as error:
        return None, None, str(error)
    found = pixels_sha256(image)
    if found == record.pixels_sha256:
        return found, True, "as they were drawn"
    if image.format == "JPEG":
        return found, None, "close to those that were drawn at best: a JPEG loses some"
    return found, False, "not those that were drawn: edited, or saved again with losses"


def _rows(record: Record) -> Iterator[tuple[str, str]]:
    """Names and values, line by line: the prompt first."""
    values = dict(record.values)
    if record.sweep is not None:
        yield "grid of", f"a sweep of {len(record.sweep.cells)} pictures; this draws it again:"
        yield "command", sweep_command(record)
        values = {"prompt": record.sweep.prompt, **record.sweep.texts()}
    yield "prompt", str(values.pop("prompt", ""))
    if negative := values.pop("negative_prompt", ""):
        yield "negative prompt", str(negative)
    width, height = values.pop("width", None), values.pop("height", None)
    if width is not None or height is not None:
        yield "size", _size(width, height, values.get("hires_scale"))
    values.pop("n", None)
    for name, usual in (("clip_skip", 1), ("guidance_rescale", 0), ("safety", "off")):
        if values.get(name) == usual:
            del values[name]
    if record.safety is not None:
        values["safety"] = marked(record.safety)
    if isinstance(g := values.get("g"), list):
        values["g"] = ":".join(map(_short, g))
    for name in (
        "seed",
        "steps",
        "g",
        "guidance_rescale",
        "guidance_interval",
        "scheduler",
        "lms_order",
        *values,
    ):
        value = values.pop(name, None)
        if value is not None and value is not False:
            yield name, _short(value)
    if record.model:
        yield "model", _short(_model(record.model))
    for part, name in record.parts.items():
        name, at, mark = name.partition("@")
        more = f", {mark.replace(':', ' ')[:19]}," if at else ""
        yield part, f"{_short(name)}{more} in place of the model's own"
    for lora in record.loras:
        yield "lora", f"{_short(lora['weight'])} of {_file(lora)}"
    for each in record.embeddings:
        yield "embedding", f"{_short(each['word'])}, of {_file(each)}"
    if record.n > 1:
        yield "batch", f"number {record.index + 1} of {record.n} that were drawn at once"
    yield "written by", WRITERS[record.source]
    if record.versions:
        versions = record.versions.items()
        yield (
            "versions",
            _short(", ".join(v if k == "program" else f"{k} {v}" for k, v in versions)),
        )
    if record.device and record.dtype:
        how = f", {record.speed}" if record.speed not in (None, "default") else ""
        yield "drawn", _short(f"on {record.device} in {record.dtype}{how}")
    for name, value in record.others.items():
        yield name, _short(value)


def sweep_command(record: Record) -> str:
    """What draws the sweep again whose grid this is; nothing of it is run."""
    assert record.sweep is not None
    options: dict[str, str | list[str]] = {}
    if name := record.model.get("name"):
        revision = record.model.get("revision")
        options["model"] = name if "@" in name or revision is None else f"{name}@{revision}"
    if prediction := record.model.get("prediction"):
        options["prediction_type"] = prediction
    if vae := record.parts.get("vae"):
        options["vae"] = vae.partition("@sha256:")[0]
    if record.loras:
        options["lora"] = [f"{lora['name']}:{lora['weight']:g}" for lora in record.loras]
    if record.embeddings:
        options["embedding"] = [f"{each['name']}:{each['word']}" for each in record.embeddings]
    if record.dtype is not None:
        options["dtype"] = record.dtype
    return record.sweep.command(**options)


def _size(width: object, height: object, hires: object) -> str:
    """The finished picture's, and with a second pass that of the first."""
    first = _short(f"{width} x {height}")
    if hires is None:
        return first
    try:
        size = Settings.from_dict(
            {"prompt": "", "width": width, "height": height, "hires_scale": hires}
        )
    except UsageError:  # anything may stand in a file
        return first
    return "{} x {} from {}".format(*size.output_size, first)


def _model(model: Mapping[str, str]) -> str:
    """A model in a line; of its long hashes, the beginnings."""
    more = [f"{key} {value[:12]}" for key, value in model.items() if key != "name"]
    return ", ".join([model.get("name", "without a name"), *more])


def _file(file: Mapping[str, Any]) -> str:
    """A file that was added to a model, in a line."""
    return f"{_short(file['name'])}, sha256 {file['sha256'][:12]}"


def _short(value: object) -> str:
    if isinstance(value, Mapping):  # a picture to begin with
        value = f"{value.get('name') or 'a picture'}, SHA-256 {str(value.get('sha256'))[:12]}"
    elif isinstance(value, list):
        value = ",".join(str(each).removesuffix(".0") for each in value)
    text = "yes" if value is True else str(value).removesuffix(".0").replace("\n", " ")
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
