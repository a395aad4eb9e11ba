"""`Job`: one training run as it was asked for, checked as far as names and files tell.

Nothing here imports torch, so that wrong usage is refused at once.
"""

from dataclasses import dataclass
from pathlib import Path

from sdpipe.errors import UsageError
from sdpipe.runtime.device import check_device
from sdpipe.settings import Settings
from sdpipe.training.adjust import adjust_recipe
from sdpipe.training.imagefolder import Entry, read_entries
from sdpipe.training.recipe import Recipe
from sdpipe.training.recipe_file import EMOJI, IMAGEFOLDER, load_recipe
from sdpipe.training.run_folder import check_out

BUILT_IN = "emoji"


@dataclass(frozen=True)
class Job:
    """One training run.

    recipe: its numbers, adjusted to size, steps and seed.
    recipe_path: its file.
    entries: the images of a folder; None trains the built-in model.
    start: the model to fine-tune; None trains a new one.
    dim: pixels a side, if given.
    """

    recipe: Recipe
    recipe_path: Path
    out: Path
    entries: list[Entry] | None = None
    start: str | None = None
    dim: int | None = None
    device: str = "auto"


def plan_job(
    target: str | None = None,
    *,
    data: Path | None = None,
    out: Path | None = None,
    start: str | None = None,
    dim: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    recipe: Path | None = None,
    device: str = "auto",
) -> Job:
    """Checks what is asked for. None leaves the recipe's value, or that of the model to fine-tune.

    Raises:
        UsageError: a value breaks its rule, or a file is missing or wrong.
    """
    if target not in (None, BUILT_IN):
        raise UsageError(
            f"{target!r}", "is not a training target", f"use {BUILT_IN}, or --data FOLDER"
        )
    if target is None and data is None:
        raise UsageError("the training target", "is missing", f"use {BUILT_IN}, or --data FOLDER")
    if target is not None and data is not None:
        raise UsageError(
            f"data={str(data)!r}", f"does not go with the target {BUILT_IN}", "leave one out"
        )
    if start is not None and data is None:
        raise UsageError(
            f"from={start!r}",
            "needs images to fine-tune on",
            f"use --data FOLDER in place of {BUILT_IN}",
        )
    if out is None and data is not None:
        raise UsageError(
            "the folder for the model", "is missing", "give it, such as --out runs/mine"
        )
    out = Path("runs") / BUILT_IN if out is None else out
    check_device(device)
    Settings(prompt="", dim=dim, seed=seed)  # size and seed follow the rules of drawing
    if steps is not None and steps < 1:
        raise UsageError(f"steps={steps}", "is less than 1", "some thousands are usual")
    path = recipe or (EMOJI if data is None else IMAGEFOLDER)
    numbers = adjust_recipe(
        load_recipe(path), size=dim, steps=steps, seed=seed, finetuning=start is not None
    )
    if data is None and numbers.scenes is None:
        raise UsageError(f"the recipe {path}", "has no table scenes", "the built-in model needs it")
    check_out(out)
    entries = None if data is None else read_entries(data)
    return Job(numbers, path, out, entries, start, dim, device)
