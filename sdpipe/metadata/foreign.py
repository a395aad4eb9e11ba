"""What the readers of other programs' metadata share: schedulers, numbers, what is left out."""

import re
from collections.abc import Mapping
from typing import Any

from sdpipe.metadata.record import Value
from sdpipe.settings import KARRAS_SCHEDULERS

GPU_NOISE = "its noise was drawn on a GPU; from the same seed a CPU draws other noise."

# Entries that leave the image as it is: always, or with this one value.
_HARMLESS = {"RNG", "Tiling", "User", "Hashes", "rand_device", "type", "id"}
_HARMLESS_VALUES: Mapping[str, Value] = {
    "generation_mode": "txt2img",
    "is_intermediate": True,
    "use_cache": True,
}


def scheduler_settings(
    sampler: str, scheduler: str | None, karras: bool, notes: list[str]
) -> tuple[dict[str, Value], list[str]]:
    """Our settings for another program's sampler, and the notes with what differs.

    sampler: as that program writes it.
    scheduler: ours of the same kind; None where we have none.
    """
    if scheduler is None:
        scheduler = "dpm++" if re.match("(k_)?dpm", sampler.lower()) else None
        instead = scheduler or "the model's own scheduler"
        notes = [*notes, f"its sampler {sampler[:60]!r} is not known here; {instead} is used."]
    if karras and scheduler not in KARRAS_SCHEDULERS:
        notes = [*notes, "its Karras noise levels are left out; this scheduler has none."]
        karras = False
    order = {"lms_order": 4} if scheduler == "lms" else {}  # the other programs have no other
    return {"scheduler": scheduler, "karras": karras, **order}, notes


def left_out(extra: Mapping[str, Value]) -> list[str]:
    """A note with the names of the entries that had a part in the image and are not drawn here."""
    names = [
        key
        for key, value in extra.items()
        if key not in _HARMLESS and value not in (_HARMLESS_VALUES.get(key), False, 0, "0", "False")
    ]
    return [f"left out: {', '.join(names[:12])}."] if names else []


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries whose value is not None."""
    return {key: value for key, value in values.items() if value is not None}


def parse_number(text: str | None, kind: type[int] | type[float]) -> Value:
    """The number that a text stands for; the text itself where it is not a number."""
    try:
        return text if text is None or len(text) > 60 else kind(text)
    except ValueError:
        return text
