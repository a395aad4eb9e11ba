"""What the readers have in common: their samplers as our schedulers, and what is left out."""

from collections.abc import Mapping
from typing import Any

from sdpipe.metadata.record import Value
from sdpipe.settings import KARRAS_SCHEDULERS

GPU_NOISE = "its noise was drawn by a GPU; from the same seed a CPU draws another."

# What else is told but leaves the picture as it is; or, with this one value, does.
_HARMLESS = {"RNG", "Tiling", "User", "Hashes", "rand_device", "type", "id"}
_DEFAULTS: Mapping[str, Value] = {
    "generation_mode": "txt2img",
    "is_intermediate": True,
    "use_cache": True,
}


def as_ours(
    theirs: str, ours: str | None, name: str, karras: bool, remarks: list[str]
) -> tuple[dict[str, Value], list[str]]:
    """Our settings for the sampler that they call `theirs`, and what there is to say about it."""
    if ours is None:
        ours = "dpm++" if name.startswith(("dpm", "k_dpm")) else None
        instead = f"{ours} draws" if ours else "the model's own draws"
        remarks = [*remarks, f"its sampler {theirs[:60]!r} is none of ours; {instead} instead."]
    if karras and ours not in KARRAS_SCHEDULERS:
        remarks = [*remarks, "its Karras noise levels are left out: no such scheduler has them."]
        karras = False
    order = {"lms_order": 4} if ours == "lms" else {}  # theirs have no other
    return {"scheduler": ours, "karras": karras, **order}, remarks


def left_out(others: Mapping[str, Value]) -> list[str]:
    """A remark on what had its part in the picture and is not drawn here."""
    names = [
        key
        for key, value in others.items()
        if key not in _HARMLESS and value not in (_DEFAULTS.get(key), False, 0, "0", "False")
    ]
    return [f"left out: {', '.join(names[:12])}."] if names else []


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that something is told of."""
    return {key: value for key, value in values.items() if value is not None}


def number(text: str | None, kind: type[int] | type[float]) -> Value:
    """The number that a text stands for; the text itself where it stands for none."""
    try:
        return text if text is None or len(text) > 60 else kind(text)
    except ValueError:
        return text
