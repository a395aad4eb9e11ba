"""`Record`: what a picture tells of how it was drawn, checked, whoever drew it.

A picture may come from anybody. So every value is held against a type and a length before it is
printed or drawn from; none is taken for a path, and nothing is fetched because of it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from sdpipe.errors import SdpipeError, UsageError
from sdpipe.settings import MAX_IMAGES, Settings
from sdpipe.sweep.sweep import Sweep

MAX_PROMPT = 2**16  # characters; a text encoder hears some hundred of them
MAX_VALUE = 300  # characters of any other text
MAX_VALUES = 200  # entries of an object
MAX_NUMBER = 2**64  # no seed is larger
LISTS = ("g", "guidance_interval", "outpaint")  # settings that may be several numbers

FORMAT = 2  # of the metadata that is written

OLD_NAMES = {
    "rescale": "guidance_rescale",
    "interval": "guidance_interval",
    "variation": "variation_strength",
    "vary": "n",
    "init": "init_image",
    "mask": "mask_image",
    "hires": "hires_scale",
    "exact": "batch_invariant",
}
"""What settings were called in format 1, which had no number."""

NOT_ITSELF = ("parts", "loras", "embeddings")
"""What stands beside a model's name and hash in our metadata, with fields of their own here."""

Value = str | int | float | bool | None


class RecordError(SdpipeError):
    """What a picture tells breaks a rule. The message does not name the picture."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a picture tells of how it was drawn.

    source: who wrote it: "sdpipe", "A1111" (its web UI, and the many that write like it) or
        "InvokeAI".
    values: settings by the names of `Settings`, as they were found; `settings()` checks them.
        Those of init_image and mask_image are objects of texts; those of `LISTS` may be lists of
        numbers.
    model: name, and, where they are told, revision, variant, sha256, or hash, another program's.
    parts: what took the place of one of the model's own parts.
    loras, embeddings: what was added to it: of each the file's name and sha256, and the weight of
        a LoRA, the word of an embedding.
    n, index: the picture was number `index`, from 0, of `n` drawn in one batch.
    versions: of what drew it.
    device, dtype, speed: where, in which number type, and how; see `device.SPEEDS`.
    pixels_sha256: of the picture as it was drawn; see `pixels.pixels_sha256`.
    others: what else it tells, under its own names.
    remarks: what drawing it again has to assume or to leave out, a sentence each.
    sweep: of which this is the grid; then there are no values.
    safety: whether the model's safety checker flagged it, where it was asked.

    Raises:
        RecordError: a value has another type than these, or is longer than any that is meant.
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
    others: Mapping[str, Value] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    sweep: Sweep | None = None
    safety: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_object("settings", self.values, texts_only=False)
        _check_object("others", self.others, texts_only=False)
        for name in ("model", "parts", "versions"):
            _check_object(name, getattr(self, name), texts_only=True)
        _check_files("loras", self.loras, "weight", int | float)
        _check_files("embeddings", self.embeddings, "word", str)
        for name in ("device", "dtype", "speed", "pixels_sha256"):
            _check_value(name, getattr(self, name), MAX_VALUE)
        _check_count("n", self.n, 1, MAX_IMAGES)
        _check_count("index", self.index, 0, self.n - 1)

    def settings(self) -> Settings:
        """The settings of this one picture; they keep every rule that a person's settings keep.

        Raises:
            RecordError: a value breaks its rule.
        """
        try:
            return Settings.from_dict(self.values)
        except UsageError as error:
            raise RecordError(str(error)) from error

    @classmethod
    def of_sdpipe(cls, own: Mapping[str, Any]) -> Self:
        """Reads our own metadata; see `png.metadata`.

        Raises:
            RecordError: a value has another type, or is too long.
        """
        model, batch = _object(own, "model"), _object(own, "batch")
        return cls(
            source="sdpipe",
            values=_renamed(own, "settings"),
            model={k: v for k, v in model.items() if k not in NOT_ITSELF and v is not None},
            parts=_object(model, "parts"),
            loras=_list(model, "loras"),
            embeddings=_list(model, "embeddings"),
            n=batch.get("n", 1),
            index=batch.get("index", 0),
            versions=_object(own, "versions"),
            device=own.get("device"),
            dtype=own.get("dtype"),
            speed=own.get("speed", "plain"),  # before there was another
            pixels_sha256=own.get("pixels_sha256"),
            sweep=_sweep(own),
            safety=_safety(own),
        )


def brief(value: object) -> str:
    """A value from a picture, for a message: as Python writes it, and no longer than a line."""
    if isinstance(value, Mapping | list):
        return "an object" if isinstance(value, Mapping) else "a list"
    text = repr(value[:80]) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _renamed(own: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object of settings, by the names that they have now.

    Raises:
        RecordError: the format is newer than this program.
    """
    values, format = _object(own, name), own.get("format", 1)
    if format == FORMAT:
        return values
    if format != 1:
        raise RecordError(
            f"format {brief(format)}", "is not known here", "a newer sdpipe may read it"
        )
    found = dict(values)
    for old in OLD_NAMES:
        if old in found and (value := found.pop(old)) is not None:
            found[OLD_NAMES[old]] = value
    return found


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object under a name; empty where there is none."""
    found = values.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise RecordError(f"{name} is {brief(found)}, not an object of names and values.")
    return found


def _list(values: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """The list under a name; empty where there is none."""
    found = values.get(name)
    if found is None:
        return ()
    if not isinstance(found, list):
        raise RecordError(f"{name} is {brief(found)}, not a list.")
    return tuple(found)


def _sweep(own: Mapping[str, Any]) -> Sweep | None:
    """The sweep of which the picture is the grid."""
    if (values := _renamed(own, "sweep")) == {}:
        return None
    for name in ("prompt", "negative_prompt"):
        _check_value(name, values.get(name), MAX_PROMPT)
    try:
        return Sweep.from_dict(values)
    except UsageError as error:
        raise RecordError(str(error)) from error


def _safety(own: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the safety checker said."""
    if (told := _object(own, "safety")) == {}:
        return None
    if not isinstance(flagged := told.get("flagged"), bool):
        raise RecordError("safety does not say whether it is flagged.")
    return {"flagged": flagged}  # the first format also had numbers of concepts


def _check_object(name: str, values: Mapping[str, Any], texts_only: bool) -> None:
    if len(values) > MAX_VALUES:
        raise RecordError(f"{name} has {len(values)} entries; up to {MAX_VALUES} are read.")
    for key, value in values.items():
        if not isinstance(key, str) or not re.fullmatch(r"[\w /().:+-]{1,80}", key):
            raise RecordError(f"{name} has an entry that is called {brief(key)}.")
        if texts_only and not isinstance(value, str):
            raise RecordError(f"{key} of {name} is {brief(value)}, not a text.")
        if (
            name == "settings"
            and key in ("init_image", "mask_image")
            and isinstance(value, Mapping)
        ):
            _check_object(key, value, texts_only=True)
            continue
        if name == "settings" and key in LISTS and isinstance(value, list):
            _check_object(key, {f"{key} {i + 1}": each for i, each in enumerate(value)}, False)
            continue
        longest = MAX_PROMPT if name == "others" or "prompt" in key else MAX_VALUE
        _check_value(key, value, longest)


def _check_files(name: str, files: tuple[Any, ...], key: str, kind: Any) -> None:
    """Holds files that were added to a model against what tells them apart, and one value more."""
    if len(files) > MAX_VALUES:
        raise RecordError(f"{name} has {len(files)} entries; up to {MAX_VALUES} are read.")
    for file in files:
        if not isinstance(file, Mapping) or set(file) != {"name", "sha256", key}:
            raise RecordError(f"{name} has an entry that is not name, sha256 and {key}.")
        _check_object(name, file, texts_only=False)
        if isinstance(file[key], bool) or not isinstance(file[key], kind):
            raise RecordError(f"{key} of {name} is {brief(file[key])}.")
        if not isinstance(file["name"], str) or not re.fullmatch(
            "[0-9a-f]{64}", str(file["sha256"])
        ):
            raise RecordError(f"{name} has an entry without a name and a SHA-256.")


def _check_value(name: str, value: object, longest: int) -> None:
    if isinstance(value, str):
        if len(value) > longest:
            raise RecordError(f"{name} has {len(value)} characters; up to {longest} are read.")
    elif isinstance(value, int | float):
        if not abs(value) <= MAX_NUMBER:
            raise RecordError(f"{name}={brief(value)} is no number that means anything here.")
    elif value is not None:
        raise RecordError(f"{name} is {brief(value)}, not a number or a text.")


def _check_count(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RecordError(f"{name}={brief(value)} of its batch is not from {low} to {high}.")
