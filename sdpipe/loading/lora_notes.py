"""What a LoRA's file notes of its layers: the alphas that diffusers and peft write."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdpipe.errors import ModelError
from sdpipe.loading.configs import check_model_settings, read_json
from sdpipe.loading.rules import shorten

MAX_ALPHA = 1e6
SETTINGS_KEY = "sdpipe.json"
"""The note with the settings that a LoRA is drawn with, as a model's `sdpipe.json` has its own."""
LORA_DEFAULTS = ("g", "steps", "scheduler")
"""The settings of which a LoRA may have a default of its own."""


def read_notes(path: Path, notes: Mapping[str, str], label: str) -> dict[str, Any]:
    """What diffusers notes of the layers in a file, or peft in one beside its own."""
    config = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and config.is_file():
        values = read_json(config, label)
        return {f"{part}.{k}": v for k, v in values.items() for part in ("unet", "text_encoder")}
    try:
        found = json.loads(notes.get("lora_adapter_metadata", "{}"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        rule = f"has notes on its layers that are not readable as JSON ({error})"
        raise ModelError(label, rule, "copy or download it again") from error
    return found


def read_settings(notes: Mapping[str, str], label: str) -> dict[str, Any]:
    """Reads the settings that a LoRA is drawn with, for one that was distilled; else none.

    Raises:
        ModelError: they are not readable, or break a rule.
    """
    try:
        values = json.loads(notes.get(SETTINGS_KEY, "{}"))
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        rule = f"has settings that are not readable as JSON ({error})"
        raise ModelError(label, rule, "copy or download it again") from error
    return check_model_settings(values, f"{label}: its {SETTINGS_KEY}", LORA_DEFAULTS)


def check_patterns(notes: Mapping[str, Any], part: str, label: str) -> None:
    """Checks that the alphas of single layers go by the ends of their names, as peft writes them.

    peft takes such an end for a regular expression; here it is a name, since the file may be a
    stranger's.

    Raises:
        ModelError: one is something else.
    """
    by_end = notes.get(f"{part}.alpha_pattern") or {}
    if not isinstance(by_end, dict):
        raise _notes_error(by_end, label)
    for end in by_end:
        if not re.fullmatch(r"\^?[\w.]+", end):
            raise _notes_error(end, label)


def alpha_of(
    notes: Mapping[str, Any], part: str, module: str, rank: int, label: str
) -> float | None:
    """A layer's alpha by notes with checked patterns: that of its part, or of its name's end.

    The scale of a rank-stabilised LoRA is alpha / sqrt(r) (Kalajdzievski 2023).

    Raises:
        ModelError: it is no number.
    """
    by_end = notes.get(f"{part}.alpha_pattern") or {}
    words = module.split(".")
    ends = [".".join(words[i:]) for i in range(len(words))]
    values = [by_end[end] for end in (f"^{module}", *ends) if end in by_end]
    value = next(iter(values), notes.get(f"{part}.lora_alpha"))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (value is None or (is_number and abs(value) <= MAX_ALPHA)):
        raise _notes_error(value, label)
    if value is None:
        return None
    return float(value) * (math.sqrt(rank) if notes.get(f"{part}.use_rslora") else 1)


def _notes_error(value: object, label: str) -> ModelError:
    rule = f"has notes on its layers that peft does not write: {shorten(value)}"
    return ModelError(label, rule, "save it anew with peft")
