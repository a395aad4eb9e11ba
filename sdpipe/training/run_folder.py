"""The folder in which a training run works, and how files get there: whole, or not at all.

OUT/training/run.json       what the run was begun with: numbers, data, the model it goes on from
OUT/training/recipe.toml    the recipe's file, as it was
OUT/training/loss.csv, *.checkpoint, latents.safetensors, rivals.safetensors, pictures.rgb,
             samples/
"""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sdpipe.errors import SdpipeError, UsageError

FOLDER, RECORD = "training", "run.json"


def check_out(out: Path) -> None:
    """Refuses a folder with anything in it but a run.

    Raises:
        UsageError: it is not a folder, or has something else in it.
    """
    if not os.path.lexists(out) or (out / FOLDER / RECORD).is_file():
        return
    if not out.is_dir():
        raise UsageError(f"out={str(out)!r} is not a folder; choose another name.")
    try:
        empty = not os.listdir(out)
    except OSError as error:
        raise UsageError(f"{out} cannot be read ({error.strerror}); choose another.") from error
    if not empty:
        raise UsageError(
            f"{out} is not empty, and what it holds is not a training run; choose another --out."
        )


def claim(out: Path, begun_with: dict[str, Any], recipe: str) -> bool:
    """Makes `out`/training with a record of what a run is begun with; True where it is new.

    begun_with: {"recipe": numbers by name, "from": text or None, "data": rows of name, caption and
        hash}. A run that stands there has to have been begun with the same.
    recipe: the text of its file.

    Raises:
        UsageError: the folder holds something else, or a run begun otherwise, or can't be written.
    """
    check_out(out)
    work = out / FOLDER
    begun_with = json.loads(json.dumps(begun_with))
    if (work / RECORD).is_file():
        if differs := difference(_record(work / RECORD), begun_with):
            raise UsageError(
                f"{out} holds a run that was begun otherwise: {differs}. Start it as it was "
                "begun, or choose another --out."
            )
        return False
    try:
        work.mkdir(parents=True, exist_ok=True)
        with written(work / "recipe.toml") as file:
            file.write(recipe.encode())
        with written(work / RECORD) as file:
            file.write(json.dumps(begun_with, indent=1, ensure_ascii=False).encode())
    except (OSError, SdpipeError) as error:
        discard(out)
        raise UsageError(
            f"{out} cannot be written ({_reason(error)}); choose another --out."
        ) from error
    return True


def discard(out: Path) -> None:
    """Takes back what `claim` has made."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    with contextlib.suppress(OSError):  # there was something in it before
        out.rmdir()


def difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """In what two records differ first, as a person would say it; None where they are the same."""
    was, now = old.get("recipe", {}), new.get("recipe", {})
    for name in {**was, **now}:
        if was.get(name) != now.get(name):
            return f"{name} was {was.get(name)} and is {now.get(name)} now"
    if old.get("from") != new.get("from"):
        return f"it went on from {old.get('from')} and now would from {new.get('from')}"
    for a, b in itertools.zip_longest(old.get("data", []), new.get("data", [])):
        if a is None:
            return f"{b[0]} is new in its data"
        if b is None:
            return f"{a[0]} is no longer in its data"
        if a[0] != b[0]:
            return f"{b[0]} is in its data where {a[0]} was"
        if a[1] != b[1]:
            return f"the caption of {a[0]} was {a[1]!r} and is {b[1]!r} now"
        if a[2] != b[2]:
            return f"{a[0]} has changed"
    return None


@contextlib.contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, under another name until it is whole: nobody ever finds half of one.

    Raises:
        SdpipeError: it cannot be written; a file that had the name before still has it.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except SdpipeError:
        raise
    except Exception as error:
        if (told := _os_error(error)) is None:
            raise
        raise cannot_write(path, told) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def cannot_write(path: Path, error: Exception) -> SdpipeError:
    """What to say of an error of writing in the middle of a run."""
    return SdpipeError(
        f"{path} cannot be written ({_reason(error)}). Make room for it and give the same command "
        "again: it goes on from the last checkpoint."
    )


def _os_error(error: BaseException) -> OSError | None:
    """The system's error behind another: torch raises one of its own that does not say why."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen


def _reason(error: BaseException) -> str:
    told = _os_error(error)
    return (told.strerror if told is not None else None) or str(error).rstrip(".")


def _record(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read ({_reason(error)}), and says what the run there was begun "
            "with; choose another --out."
        ) from error
    return values if isinstance(values, dict) else {}
