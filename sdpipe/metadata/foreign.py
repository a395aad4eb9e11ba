"""What the readers of other programs' metadata share: schedulers, numbers, what is left out."""

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from sdpipe.metadata.record import MAX_ENTRIES, Value
from sdpipe.settings import DISTILLED_SCHEDULERS, KARRAS_SCHEDULERS, find_scheduler

GPU_THREADS = 40_960
"""The numbers that any GPU with 40 multiprocessors draws in one order, see `runtime.philox`."""

# Who drew the noise, by the names of other programs.
_RNGS = {"cpu": "cpu", "nv": "cuda", "cuda": "cuda", "gpu": "cuda"}

# Entries that leave the image as it is, in lower case: always, or with this one value.
_IDLE = {
    *("app", "batch pos", "batch size", "civitai metadata", "created_at", "date"),
    *("generation_time", "hashes", "id"),
    *("metadata_scheme", "model_list", "negative template", "rand_device", "regions", "rng"),
    *("template", "tiling", "type", "user", "workflow", "graph", "canvas_v2_metadata"),
}
_IDLE_VALUES: Mapping[str, Value] = {
    "generation_mode": "txt2img",
    "is_intermediate": True,
    "use_cache": True,
}
_NOT_PLAIN = re.compile(r"[^\w /().:+-]|^$")
SCHEDULES = {"", "automatic", "uniform", "karras", "normal", "sgm uniform", "sgm_uniform"}


def scheduler_settings(sampler: str, schedule: str = "") -> tuple[dict[str, Value], list[str]]:
    """Our settings for another program's sampler and schedule, and notes on what differs.

    sampler, schedule: as that program writes them, "" where it does not. A1111's Automatic is
        Karras for its DPM++ family and uniform for the rest.
    """
    schedule, notes = schedule.lower(), []
    if schedule not in SCHEDULES:
        notes.append(f"its schedule {schedule[:60]!r} is not known here; the steps are uniform.")
    if not sampler:
        return {}, notes
    scheduler, karras = find_scheduler(sampler)
    karras = karras or schedule == "karras"
    if schedule == "automatic":
        karras = sampler.startswith("DPM++")
    if scheduler is None:
        scheduler = "dpm++" if re.match("(k_)?dpm", sampler.lower()) else None
        instead = scheduler or "the model's own scheduler"
        notes.append(f"its sampler {sampler[:60]!r} is not known here; {instead} is used.")
    if karras and scheduler not in KARRAS_SCHEDULERS:
        notes.append("its Karras noise levels are left out; this scheduler has none.")
        karras = False
    values: dict[str, Value] = {"scheduler": scheduler, "karras": karras}
    if scheduler == "lms":
        values["lms_order"] = 4  # the other programs have no other
    if schedule.startswith("sgm") and scheduler not in DISTILLED_SCHEDULERS:
        values["spacing"] = "trailing"
        notes.append("its steps are those of spacing trailing, to less than one timestep.")
    return values, notes


def rng_settings(
    name: str | None, width: Value, height: Value, notes: list[str]
) -> dict[str, Value]:
    """Our setting for the generator of another program's noise; adds notes on what is assumed.

    name: as that program writes it; None where it was the GPU because nobody chose.
    width, height: of the image, in pixels.
    """
    rng = _RNGS.get((name or "gpu").lower())
    if rng is None:
        notes.append(f"its noise came from {str(name)[:60]!r}, whose numbers are not known here.")
    if name is None:
        notes.append(
            "its noise is taken to be that of an NVIDIA GPU; if it came from a CPU or a Mac: --set "
            "rng=cpu."
        )
    numbers = width * height // 16 if isinstance(width, int) and isinstance(height, int) else 0
    if rng == "cuda" and name in (None, "GPU", "cuda") and numbers > GPU_THREADS:
        notes.append(
            f"its noise has {numbers} numbers; a GPU with fewer threads ordered them otherwise."
        )
    return {"rng": rng}


def left_out(extra: Mapping[str, Value]) -> list[str]:
    """A note with the names of the entries that had a part in the image and are not drawn here."""
    names = [
        key
        for key, value in extra.items()
        if key.lower() not in _IDLE
        and value not in (_IDLE_VALUES.get(key), False, 0, "0", "False", "None")
    ]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return [f"left out: {', '.join(names[:12])}{more}."] if names else []


def notes_on_steps(values: Mapping[str, Any]) -> list[str]:
    """A note on the sampler whose steps A1111 and ComfyUI take otherwise than diffusers."""
    note = _STEP_NOTES.get(values.get("scheduler", ""))
    if note is None or (values["scheduler"] == "dpm++" and values.get("karras")):
        return []
    return [note]


_PENULTIMATE = "its last noise level but one was left out there."
_STEP_NOTES = {
    "dpm++": "its steps end at timestep 0 there, and a step before it here: of 12 steps the image "
    "differs by a fifth, of 30 by a fifteenth.",
    "dpm++_2m_sde": "the noise of its steps came from a Brownian tree there, and is drawn step by "
    "step here, so the image is another.",
    "dpm2": _PENULTIMATE,
    "dpm2_a": _PENULTIMATE,
}


def extra_values(named: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """Values by name, as many as a record holds, under plain names."""
    there = ((name, value) for name, value in named if value is not None)
    return {_NOT_PLAIN.sub("_", name)[:80]: value for name, value in islice(there, MAX_ENTRIES)}


def as_scalar(value: object) -> Value:
    """A value as a scalar: an object by its name, a list by its length."""
    if isinstance(value, Mapping):
        name = name_of(value)
        return name if isinstance(name, str) else "an object"
    if isinstance(value, list):
        return f"{len(value)} entries"
    return value  # type: ignore[return-value]


def name_of(model: object) -> object:
    """The name of a model or a part, which is an object of some programs."""
    if isinstance(model, Mapping):
        return model.get("name", model.get("model_name"))
    return model


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries whose value is not None."""
    return {key: value for key, value in values.items() if value is not None}
