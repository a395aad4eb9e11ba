"""What a LoRA's file notes of its layers: the alphas that diffusers and peft write."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdpipe.errors import ModelError
from sdpipe.loading.configs import read_json

MAX_ALPHA = 1e6


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


def alpha_of(
    notes: Mapping[str, Any], part: str, module: str, rank: int, label: str
) -> float | None:
    """A layer's alpha by the notes: that of its part, or of the end of its name.

    peft takes such an end for a regular expression; here it is the name that peft writes, since
    the file may be a stranger's. The scale of a rank-stabilised LoRA is alpha / sqrt(r)
    (Kalajdzievski 2023).

    Raises:
        ModelError: the notes are not those of peft.
    """
    by_end = notes.get(f"{part}.alpha_pattern") or {}
    words = module.split(".")
    ends = [".".join(words[i:]) for i in range(len(words))]
    if not isinstance(by_end, dict):
        by_end = {"": by_end}
    wrong = [end for end in by_end if not re.fullmatch(r"\^?[\w.]+", end)]
    values = [by_end[end] for end in (f"^{module}", *ends) if end in by_end]
    value = next(iter(values), notes.get(f"{part}.lora_alpha"))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if wrong or not (value is None or (is_number and abs(value) <= MAX_ALPHA)):
        shown = repr(wrong[0] if wrong else value)[:60]
        rule = f"has notes on its layers that peft does not write: {shown}"
        raise ModelError(label, rule, "save it anew with peft")
    if value is None:
        return None
    return float(value) * (math.sqrt(rank) if notes.get(f"{part}.use_rslora") else 1)
