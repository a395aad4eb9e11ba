"""The folder of a training run.

OUT/training/run.json       what defines the run: numbers, data, the model that is fine-tuned
OUT/training/recipe.toml    the recipe's file, unchanged
OUT/training/loss.csv, *.checkpoint, latents.safetensors, hard_negatives.safetensors, images.rgb,
             paths-*.safetensors, samples/
"""

import contextlib
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

from sdpipe.errors import SdpipeError, UsageError
from sdpipe.io.files import atomic_write, write_error

FOLDER, RECORD = "training", "run.json"
RESUME = "make room for it and run the same command again, which continues from the last checkpoint"
"""The remedy for a file that cannot be written during a run."""


def lora_path(out: Path) -> Path:
    """Where the LoRA of a distillation is written."""
    return out / f"{out.resolve().name}.safetensors"


def check_out(out: Path) -> None:
    """Refuses a folder with anything in it but a training run.

    Raises:
        UsageError: it is not a folder, cannot be read, or has other content.
    """
    if not os.path.lexists(out) or (out / FOLDER / RECORD).is_file():
        return
    if not out.is_dir():
        raise UsageError(f"out={str(out)!r}", "is not a folder", "choose another name")
    try:
        empty = not os.listdir(out)
    except OSError as error:
        raise UsageError(
            str(out), f"cannot be read ({error.strerror})", "choose another --out"
        ) from error
    if not empty:
        raise UsageError(str(out), "is neither empty nor a training run", "choose another --out")


def init_run_dir(out: Path, identity: dict[str, Any], recipe: str) -> bool:
    """Makes `out`/training with a record of the run; returns whether the run is new.

    identity: {"recipe": numbers by name, "from": text or None, "data": rows of name, caption and
        hash}. A run that is already there must have the same.
    recipe: the text of its file.

    Raises:
        UsageError: the folder has other content, or another run, or cannot be written.
    """
    check_out(out)
    folder = out / FOLDER
    identity = json.loads(json.dumps(identity))
    if (folder / RECORD).is_file():
        if difference := describe_difference(_read_record(folder / RECORD), identity):
            raise UsageError(
                str(out),
                f"holds another run: {difference}",
                "repeat the command of that run, or choose another --out",
            )
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "recipe.toml") as file:
            file.write(recipe.encode())
        with atomic_write(folder / RECORD) as file:
            file.write(json.dumps(identity, indent=1, ensure_ascii=False).encode())
    except (OSError, SdpipeError) as error:
        remove_run_dir(out)
        cause = error if isinstance(error, SdpipeError) else write_error(out, error)
        raise UsageError(str(out), cause.rule, "choose another --out") from error
    return True


def remove_run_dir(out: Path) -> None:
    """Removes what `init_run_dir` made."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    with contextlib.suppress(OSError):  # there was something in it before
        out.rmdir()


def describe_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first difference between two records, in words; None if they are equal."""
    was, now = old.get("recipe", {}), new.get("recipe", {})
    for name in {**was, **now}:
        if was.get(name) != now.get(name):
            return f"{name} was {was.get(name)} and is now {now.get(name)}"
    if old.get("from") != new.get("from"):
        return f"it started from {old.get('from')}, not from {new.get('from')}"
    for a, b in itertools.zip_longest(old.get("data", []), new.get("data", [])):
        if a is None:
            return f"{b[0]} is new in the data"
        if b is None:
            return f"{a[0]} is no longer in the data"
        if a[0] != b[0]:
            return f"the data has {b[0]} in place of {a[0]}"
        if a[1] != b[1]:
            return f"the caption of {a[0]} was {a[1]!r} and is now {b[1]!r}"
        if a[2] != b[2]:
            return f"{a[0]} has changed"
    return None


def _read_record(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            str(path),
            f"cannot be read ({reason}), so the run there is unknown",
            "choose another --out",
        ) from error
    return values if isinstance(values, dict) else {}
