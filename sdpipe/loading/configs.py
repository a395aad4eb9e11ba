"""The JSON files of a model, read as data: configurations of its parts and its own settings."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpipe.errors import ModelError, UsageError
from sdpipe.loading.rules import shorten
from sdpipe.loading.schema import check_config
from sdpipe.loading.weights import check_file, damage_error, repair
from sdpipe.settings import MODEL_DEFAULTS, RULES

V1_4_SCHEDULER: Mapping[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
"""v1-4's scheduler, for parts that come without one."""

OWN_SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "LMSDiscreteScheduler": {"scheduler": "lms"},
    "DDIMScheduler": {"scheduler": "ddim"},
    "EulerDiscreteScheduler": {"scheduler": "euler"},
    "EulerAncestralDiscreteScheduler": {"scheduler": "euler_a"},
    "HeunDiscreteScheduler": {"scheduler": "heun"},
    "DPMSolverMultistepScheduler": {"scheduler": "dpm++"},
    "UniPCMultistepScheduler": {"scheduler": "unipc"},
    "LCMScheduler": {"scheduler": "lcm", "steps": 4, "g": 1.0},
    "TCDScheduler": {"scheduler": "tcd", "steps": 4, "g": 1.0},
    "KDPM2DiscreteScheduler": {"scheduler": "dpm2"},
    "KDPM2AncestralDiscreteScheduler": {"scheduler": "dpm2_a"},
    "DDPMScheduler": {"scheduler": "ddpm"},
    "DEISMultistepScheduler": {"scheduler": "deis"},
}
"""The settings that the class in a model's scheduler config stands for. Models of version 1 name
PNDM, and are drawn with the default, LMS. LCM and TCD serve distilled models alone, which draw in
a few steps without guidance; that a model is SD-Turbo shows in none of its files."""


def own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a scheduler config stands for: the scheduler, and Karras' levels."""
    settings = dict(OWN_SCHEDULERS.get(config.get("_class_name", ""), {}))
    if settings and str(config.get("algorithm_type")).startswith("sde-"):
        settings["scheduler"] = "dpm++_2m_sde"
    if settings and config.get("use_karras_sigmas"):
        settings["karras"] = True
    return settings


CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "unet": {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 1280},
    "vae": {"latent_channels": 4, "block_out_channels": (64,)},
    "text_encoder": {
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    },
}
"""The classes' defaults of the values that are read here, for configurations without them."""


MAX_TEXT_FILE = 2**24  # bytes; v1-4's vocabulary is the longest, with 1 MB

INDEX = "model_index.json"
"""The file that lists the parts of a model."""

OTHER_PARTS = ("text_encoder_2", "text_encoder_3", "transformer", "prior")
"""Parts of other families, without which the rest of a model is not itself."""

OTHER_FAMILIES = re.compile(
    r"XL|Diffusion3|Flux|Kandinsky|Cascade|UnCLIP|Upscale|Video|Sana|PixArt"
)
"""What the names of their classes contain."""


def read_json(path: Path, label: str) -> dict[str, Any]:
    """Reads a JSON object. Raises ModelError if the file is something else.

    label: how messages name the model, such as "model='emoji'".
    """
    who = f"{label}: {path}"
    text = read_text(path, label)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damage_error(who, path, error, "is not readable as JSON") from error
    if not isinstance(values, dict):
        raise ModelError(who, "is not a JSON object", repair(path))
    return values


def read_text(path: Path, label: str) -> str:
    """Reads a text file of a model, of at most `MAX_TEXT_FILE` bytes.

    Raises:
        ModelError: it is longer, no file, or not UTF-8.
    """
    who = f"{label}: {path}"
    if not os.path.lexists(path):
        raise ModelError(who, "is missing", repair(path))
    check_file(path, who)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_FILE + 1)
        if len(data) > MAX_TEXT_FILE:
            rule = f"is longer than the {MAX_TEXT_FILE} bytes that are read of such a file"
            raise ModelError(who, rule, repair(path))
        return data.decode()
    except (OSError, ValueError) as error:
        raise damage_error(who, path, error, "is not readable as text") from error


def check_index(folder: Path, label: str) -> None:
    """Checks by its model_index.json that a model is of the family of v1-4.

    Raises:
        ModelError: it is not readable, or lists parts that v1-4 has not, as SDXL does.
    """
    values = read_json(folder / INDEX, label)
    checked = check_config(values, INDEX, f"{label}: {folder / INDEX}")
    name = checked.get("_class_name", "model of no class")
    others = [
        part
        for part, kind in values.items()
        if part in OTHER_PARTS and isinstance(kind, list) and any(kind)
    ]
    if others or OTHER_FAMILIES.search(name):
        parts = f" with the part {others[0]}" if others else ""
        raise ModelError(
            label,
            f"is a {name}{parts}, of another family than Stable Diffusion 1 and 2",
            "take a model of the family of v1-4",
        )


def check_shards(path: Path, found: Mapping[str, str], label: str) -> None:
    """Holds the index of sharded weights against the files: other programs go by it.

    found: by tensor, the name of the file that has it.

    Raises:
        ModelError: it is not readable, or puts a tensor into a file that does not have it.
    """
    files = read_json(path, label).get("weight_map")
    if not isinstance(files, dict):
        raise ModelError(f"{label}: {path}", "has no weight_map", repair(path))
    for name, file in files.items():
        if found.get(name) != file:
            raise ModelError(
                f"{label}: {path}",
                f"says that {shorten(name)} is in {shorten(file)}, which is not so",
                "download all files of these weights again, from one place",
            )


def read_config(folder: Path, part: str, label: str) -> dict[str, Any]:
    """Reads the configuration of a part, see `check_config`; of a whole CLIP its text half.

    Raises:
        ModelError: it is not readable, or a value breaks its rule.
    """
    path = folder / ("scheduler_config.json" if part == "scheduler" else "config.json")
    values = read_json(path, label)
    half = values.get("text_config")
    return check_config(half if isinstance(half, dict) else values, part, f"{label}: {path}")


def read_checker_configs(folder: Path, label: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the configurations of a model's safety checker and of its image processor.

    Raises:
        ModelError: they are not readable, or a value breaks its rule.
    """
    path = folder / "safety_checker" / "config.json"
    values, who = read_json(path, label), f"{label}: {path}"
    config = {"projection_dim": values.get("projection_dim", 768)}
    for half in ("text", "vision"):
        given = values.get(f"{half}_config") or {}
        if not isinstance(given, dict):
            raise ModelError(who, f"has a {half}_config that is not a JSON object")
        config[f"{half}_config"] = check_config(given, f"checker_{half}", who)
    path = folder / "feature_extractor" / "preprocessor_config.json"
    return config, check_config(read_json(path, label), "processor", f"{label}: {path}")


def read_model_settings(path: Path, label: str) -> dict[str, Any]:
    """Reads a model's sdpipe.json: its own defaults of any of `settings.MODEL_DEFAULTS`.

    Raises:
        ModelError: an unknown key, or a value that breaks its rule.
    """
    return check_model_settings(read_json(path, label), f"{label}: {path}")


def check_model_settings(
    values: Mapping[str, Any], who: str, known: Sequence[str] = MODEL_DEFAULTS
) -> dict[str, Any]:
    """Checks the settings that a file brings as defaults; None counts as left out.

    Raises:
        ModelError: an unknown key, or a value that breaks its rule.
    """
    if unknown := sorted(set(values) - set(known)):
        raise ModelError(
            who, f"has the unknown key {unknown[0]!r}", f"the known are {', '.join(known)}"
        )
    try:
        return {
            name: RULES[name].check(name, value)
            for name, value in values.items()
            if value is not None
        }
    except UsageError as error:
        raise ModelError(who, f"breaks a rule: {str(error).rstrip('.')}") from error
