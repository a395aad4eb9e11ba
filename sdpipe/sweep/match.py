"""Whether a file is a certain cell of a sweep: by its settings, weights, machine and pixels."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.errors import SdpipeError
from sdpipe.io import png
from sdpipe.io.pixels import load_pixels, pixels_sha256
from sdpipe.metadata.read import read_record
from sdpipe.metadata.record import Record
from sdpipe.runtime.device import dtype_name
from sdpipe.settings import DEFAULT_OF

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline

MODEL_KEYS = ("revision", "variant", "sha256", "prediction")
"""What tells one model from another, besides its parts and what was added."""


def mismatch(
    path: Path, record: Record | None, values: Mapping[str, Any], pipe: "Pipeline"
) -> str | None:
    """Why a file cannot be the cell with these settings, or None if it is that cell."""
    identity = pipe.components.model.identity()
    if record is None or record.source != "sdpipe" or record.sweep is not None:
        return "is not an image by sdpipe"
    if settings_key(record.values) != settings_key(values):
        return "was drawn from other settings"
    then = {name: record.model.get(name) for name in MODEL_KEYS}
    now = {name: identity[name] for name in then}
    if then != now or dict(record.parts) != identity["parts"]:
        return f"was drawn by other weights ({_weights(then)}, not {_weights(now)})"
    if list(map(dict, record.loras)) != identity["loras"]:
        return "was drawn with other LoRAs"
    if list(map(dict, record.embeddings)) != identity["embeddings"]:
        return "was drawn with other embeddings"
    here = (dtype_name(pipe.components.dtype), pipe.components.device.type)
    if (record.dtype, (record.device or "").partition(":")[0]) != here:
        return f"was drawn on {record.device} in {record.dtype}, not on {here[1]} in {here[0]}"
    if record.speed != pipe.speed:
        return f"was drawn with speed {record.speed}, not {pipe.speed}"
    return None if _is_intact(path, record.pixels_sha256) else "was changed after it was drawn"


def settings_key(values: Mapping[str, Any]) -> str:
    """The settings that are not at their default; images older than a setting lack it."""
    given = {name: value for name, value in values.items() if value != DEFAULT_OF.get(name)}
    return json.dumps(given, sort_keys=True)


def read_or_none(path: Path) -> Record | None:
    """What an image says of itself, or None if it cannot be read."""
    try:
        return read_record(path)
    except SdpipeError:
        return None


def carries(path: Path, metadata: Mapping[str, Any]) -> bool:
    """Whether a file has this metadata, and still the pixels that it records."""
    try:
        same = png.read(path).get("sdpipe") == json.loads(json.dumps(metadata["sdpipe"]))
    except SdpipeError:
        return False
    return same and _is_intact(path, metadata["sdpipe"]["pixels_sha256"])


def _is_intact(path: Path, recorded: str | None) -> bool:
    try:
        return pixels_sha256(load_pixels(path)) == recorded
    except SdpipeError:
        return False


def _weights(model: Mapping[str, Any]) -> str:
    return str(model.get("sha256") or model.get("revision") or "unknown")[:12]
