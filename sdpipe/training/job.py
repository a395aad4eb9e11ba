"""`Job`: what a person asked to be trained, checked as far as names and files tell."""

from dataclasses import dataclass
from pathlib import Path

from sdpipe.errors import UsageError
from sdpipe.runtime.device import check_device
from sdpipe.settings import Settings
from sdpipe.training.imagefolder import Entry, read_entries
from sdpipe.training.recipe import EMOJI, IMAGEFOLDER, Recipe, adjusted, load_recipe
from sdpipe.training.run_folder import check_out

BUILT_IN = "emoji"


@dataclass(frozen=True)
class Job:
    """One training run.

    recipe: its numbers, those that were asked for in place of the file's.
    recipe_path: its file.
    entries: the pictures of a folder; None are the emoji.
    start: the model to go on from; None begins from nothing.
    dim: pixels a side, where that was asked for.
    """

    recipe: Recipe
    recipe_path: Path
    out: Path
    entries: list[Entry] | None = None
    start: str | None = None
    dim: int | None = None
    device: str = "auto"


def plan_job(
    what: str | None = None,
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
    """From what was asked for to a job. What is None is the recipe's, or the model's to go on from.

    Imports no torch: what can be told from names and texts is told at once.

    Raises:
        UsageError: a value breaks its rule, or a file is not what it should be.
    """
    if what not in (None, BUILT_IN):
        raise UsageError(
            f"{what!r} is nothing to train on; say {BUILT_IN}, for the built-in model, or --data "
            "with a folder of pictures."
        )
    if (what is None) == (data is None):
        raise UsageError(
            f"say what to train on: either {BUILT_IN}, for the built-in model, or --data with a "
            f"folder of pictures{'' if what is None else ', not both'}."
        )
    if start is not None and data is None:
        raise UsageError(
            f"from={start!r} goes on with pictures of your own; give their folder with --data, "
            f"and leave {BUILT_IN} out."
        )
    if out is None and data is not None:
        raise UsageError("say with --out where the model goes, for instance --out runs/mine.")
    out = Path("runs") / BUILT_IN if out is None else out
    check_device(device)
    Settings(prompt="", dim=dim, seed=seed)  # their rules are the same as in drawing
    if steps is not None and steps < 1:
        raise UsageError(f"steps={steps} is out of range; it is 1 or more, thousands usually.")
    path = recipe or (EMOJI if data is None else IMAGEFOLDER)
    read = load_recipe(path)
    numbers = adjusted(read, dim=dim, steps=steps, seed=seed, going_on=start is not None)
    if data is None and numbers.scenes is None:
        raise UsageError(f"the recipe {path}: scenes is missing; the built-in model needs it.")
    check_out(out)
    entries = None if data is None else read_entries(data)
    return Job(numbers, path, out, entries, start, dim, device)
