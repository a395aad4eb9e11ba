"""`Record`: what an image says of how it was drawn, checked, whichever program drew it.

An image may come from anybody. Every value is therefore checked for its type and its length before
it is printed or drawn from. No value is used as a path, and nothing is downloaded because of one.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from sdpipe.errors import SdpipeError, UsageError
from sdpipe.io.png import FORMAT
from sdpipe.prompt.syntax import MAX_PROMPT
from sdpipe.settings import MAX_IMAGES, Settings

MAX_EXTRA = 2**16  # characters of a text under a name that is unknown here
MAX_VALUE = 300  # characters of any other text
MAX_ENTRIES = 200  # of an object
MAX_LIST = 1000  # values of one setting; a sweep's axis has no more
MAX_NUMBER = 2**64  # no seed is larger
MAX_QUOTED = 200  # characters of a value that a message repeats

PROVENANCE_KEYS = ("parts", "loras", "embeddings")
"""Keys of `model` in our metadata that `Record` keeps in separate fields."""

NAMES_OF_FORMAT_1 = {
    "rescale": "guidance_rescale",
    "interval": "guidance_interval",
    "variation": "variation_strength",
    "vary": "n",
    "init": "init_image",
    "mask": "mask_image",
    "hires": "hires_scale",
    "exact": "batch_invariant",
}
"""Settings by their names in format 1, which had no number, and by those of today."""

JOINED = "it was drawn in one batch with other requests; the last bits may differ."
STOPPED = "it was stopped before its last step, and is drawn to its end here."
"""What images say that `sdpipe serve` drew."""

Value = str | int | float | bool | None


class RecordError(SdpipeError):
    """A recorded value breaks a rule. The message does not name the image: see `about_image`."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What an image says of how it was drawn.

    source: the program that wrote it: "sdpipe", "A1111" (its web UI and the many programs that
        write the same format) or "InvokeAI".
    values: settings by the names of `Settings`, as they were found; `settings()` checks them. Each
        is a scalar, a list of scalars or an object of texts.
    model: name and, where recorded, revision, variant, sha256, prediction, or another program's
        hash.
    parts: the parts that replaced the model's own: hub id@commit, or name@sha256:hash.
    loras, embeddings: the files added to the model: name, sha256, and the weight of a LoRA or the
        word of an embedding.
    n, index: the image was number `index`, from 0, of a batch of `n`.
    versions: of the programs and libraries that drew it.
    device, dtype, speed: where it was drawn, in which number type, and how; see `device.SPEEDS`.
    pixels_sha256: of the image as it was drawn; see `pixels.pixels_sha256`.
    extra: every other recorded value, under its own name.
    notes: what drawing it again assumes or leaves out, a sentence each.
    sweep: for the grid of a sweep, the sweep's prompt and values; `values` is empty then.
    safety: whether the model's safety checker flagged it, where it was asked.
    mark: what it says of its source, a term of `io.mark`.

    Raises:
        RecordError: a value has the wrong type, or is too long.
    """

    source: str
    values: Mapping[str, Any]
    model: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    loras: tuple[Mapping[str, Any], ...] = ()
    embeddings: tuple[Mapping[str, Any], ...] = ()
    n: int = 1
    index: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    dtype: str | None = None
    speed: str | None = None
    pixels_sha256: str | None = None
    extra: Mapping[str, Value] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sweep: Mapping[str, Any] | None = None
    safety: Mapping[str, Any] | None = None
    mark: str | None = None

    def __post_init__(self) -> None:
        _check_settings("settings", self.values)
        _check_settings("sweep", self.sweep or {})
        _check_object("extra", self.extra, longest=MAX_EXTRA)
        for name in ("model", "parts", "versions"):
            _check_texts(name, getattr(self, name))
        _check_files("loras", self.loras, "weight", int | float)
        _check_files("embeddings", self.embeddings, "word", str)
        for name in ("device", "dtype", "speed", "pixels_sha256"):
            _check_text(name, getattr(self, name))
        _check_count("n", self.n, 1, MAX_IMAGES)
        _check_count("index", self.index, 0, self.n - 1)

    def settings(self) -> Settings:
        """The checked settings of this one image.

        Raises:
            RecordError: a value breaks its rule.
        """
        try:
            return Settings.from_dict(self.values)
        except UsageError as error:
            raise RecordError(*shorten(error)) from error

    @classmethod
    def from_sdpipe(cls, written: Mapping[str, Any]) -> Self:
        """Reads our own metadata, of this format or an earlier one; see `png.metadata`.

        Raises:
            RecordError: the format is unknown, or a value has the wrong type or is too long.
        """
        model, batch = _get_object(written, "model"), _get_object(written, "batch")
        return cls(
            source="sdpipe",
            values=_get_settings(written, "settings"),
            model={k: v for k, v in model.items() if k not in PROVENANCE_KEYS and v is not None},
            parts=_get_object(model, "parts"),
            loras=_get_list(model, "loras"),
            embeddings=_get_list(model, "embeddings"),
            n=batch.get("n", 1),
            index=batch.get("index", 0),
            versions=_get_object(written, "versions"),
            device=written.get("device"),
            dtype=written.get("dtype"),
            speed=written.get("speed", "plain"),  # older images were all drawn so
            pixels_sha256=written.get("pixels_sha256"),
            sweep=_get_settings(written, "sweep") or None,
            safety=_get_safety(written),
            notes=(JOINED,) * bool(batch.get("joined")) + (STOPPED,) * ("stopped_after" in written),
        )


def about_image(path: str | os.PathLike[str], rule: str, error: SdpipeError) -> SdpipeError:
    """An error that names the image: "apple.png cannot be drawn again: steps=0 is ..."."""
    value, broken, remedy = shorten(error)
    return SdpipeError(f"{path}", f"{rule}: {value} {broken}".rstrip(" ."), remedy)


def shorten(error: SdpipeError) -> tuple[str, str, str]:
    """The fields of an error, with the value cut: a stranger's may be as long as a novel."""
    value = error.value
    if len(value) > (longest := MAX_QUOTED if error.rule else 2 * MAX_QUOTED):
        value = f"{value[:longest]}..."
    return value, error.rule, error.remedy


def truncate(value: object) -> str:
    """A recorded value for a message: as Python writes it, at most 60 characters."""
    if isinstance(value, Mapping | list):
        return "an object" if isinstance(value, Mapping) else "a list"
    text = repr(value[:80]) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _get_object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object under a name; empty where there is none."""
    found = values.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise RecordError(f"{name} is {truncate(found)}", "where an object is expected")
    return found


def _get_settings(written: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The settings under a name, by the names of today."""
    values, format = _get_object(written, name), written.get("format", 1)
    if format == FORMAT:
        return values
    if format != 1:
        remedy = "a newer sdpipe may read it"
        raise RecordError(f"format {truncate(format)}", "is not known here", remedy)
    named = {key: value for key, value in values.items() if key not in NAMES_OF_FORMAT_1}
    for old, new in NAMES_OF_FORMAT_1.items():
        if values.get(old) is not None:
            named[new] = values[old]
    return named


def _get_list(values: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """The list under a name; empty where there is none."""
    found = values.get(name)
    if found is None:
        return ()
    if not isinstance(found, list):
        raise RecordError(f"{name} is {truncate(found)}", "where a list is expected")
    return tuple(found)


def _get_safety(written: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the safety checker said; None where it was not asked."""
    if not (found := _get_object(written, "safety")):
        return None
    if not isinstance(flagged := found.get("flagged"), bool):
        raise RecordError("safety", "does not say whether the image is flagged")
    return {"flagged": flagged}  # format 1 also had numbers of concepts


def _check_settings(name: str, values: Mapping[str, Any]) -> None:
    """Checks an object of scalars, lists of scalars and objects of texts."""
    _check_names(name, values)
    for key, value in values.items():
        if isinstance(value, Mapping):
            _check_texts(key, value)
            continue
        several = value if isinstance(value, list) else [value]
        if len(several) > MAX_LIST:
            raise RecordError(
                f"{key} has {len(several)} values", f"and at most {MAX_LIST} are read"
            )
        for each in several:
            _check_scalar(key, each, MAX_PROMPT if "prompt" in key else MAX_VALUE)


def _check_object(name: str, values: Mapping[str, Any], longest: int = MAX_VALUE) -> None:
    """Checks an object of scalars."""
    _check_names(name, values)
    for key, value in values.items():
        _check_scalar(key, value, longest)


def _check_texts(name: str, values: Mapping[str, Any]) -> None:
    """Checks an object of texts."""
    _check_names(name, values)
    for key, value in values.items():
        if not isinstance(value, str):
            raise RecordError(f"{key} of {name} is {truncate(value)}", "where a text is expected")
        _check_scalar(key, value, MAX_VALUE)


def _check_names(name: str, values: Mapping[str, Any]) -> None:
    if len(values) > MAX_ENTRIES:
        raise RecordError(
            f"{name} has {len(values)} entries", f"and at most {MAX_ENTRIES} are read"
        )
    for key in values:
        if not isinstance(key, str) or not re.fullmatch(r"[\w /().:+-]{1,80}", key):
            raise RecordError(f"{name} has an entry {truncate(key)}", "which is not a plain name")


def _check_files(name: str, files: tuple[Any, ...], key: str, kind: Any) -> None:
    """Checks the files added to a model: name, SHA-256 and one value more, `key` of type `kind`."""
    if len(files) > MAX_ENTRIES:
        raise RecordError(f"{name} has {len(files)} entries", f"and at most {MAX_ENTRIES} are read")
    for file in files:
        if not isinstance(file, Mapping) or set(file) != {"name", "sha256", key}:
            raise RecordError(f"{name} has an entry", f"that is not name, sha256 and {key}")
        _check_object(name, file)
        if isinstance(file[key], bool) or not isinstance(file[key], kind):
            expected = "text" if kind is str else "number"
            raise RecordError(
                f"{key} of {name} is {truncate(file[key])}", f"where a {expected} is expected"
            )
        if not isinstance(file["name"], str) or not re.fullmatch(
            "[0-9a-f]{64}", str(file["sha256"])
        ):
            raise RecordError(f"{name} has an entry", "without a name and a SHA-256")


def _check_text(name: str, value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise RecordError(f"{name} is {truncate(value)}", "where a text is expected")
    _check_scalar(name, value, MAX_VALUE)


def _check_scalar(name: str, value: object, longest: int) -> None:
    if isinstance(value, str):
        if len(value) > longest:
            raise RecordError(
                f"{name} has {len(value)} characters", f"and at most {longest} are read"
            )
    elif isinstance(value, int | float):
        if not abs(value) <= MAX_NUMBER:
            raise RecordError(f"{name}={truncate(value)}", "is beyond every number that is read")
    elif value is not None:
        raise RecordError(f"{name} is {truncate(value)}", "where a number or a text is expected")


def _check_count(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RecordError(f"{name}={truncate(value)} of its batch", f"is not from {low} to {high}")
