"""`Job`: one training run as it was asked for, checked as far as names and files tell.

Nothing here imports torch, so that wrong usage is refused at once.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from sdpipe.errors import UsageError
from sdpipe.runtime.device import check_device
from sdpipe.settings import MAX_DISTILLED_STEPS, Settings
from sdpipe.training.adjust import adjust_recipe
from sdpipe.training.imagefolder import Entry, read_entries
from sdpipe.training.recipe import Recipe
from sdpipe.training.recipe_file import (
    DISTILLATION,
    EMOJI,
    IMAGEFOLDER,
    load_distillation,
    load_recipe,
)
from sdpipe.training.run_folder import check_out

BUILT_IN = "emoji"


@dataclass(frozen=True)
class Job:
    """One training run.

    recipe: its numbers, adjusted to size, steps and seed.
    recipe_path: its file.
    entries: the images of a folder; None are those of the built-in model.
    start: the model to fine-tune, or to distil if the recipe says so; None trains a new one.
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
    distill: str | None = None,
    dim: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    recipe: Path | None = None,
    device: str = "auto",
) -> Job:
    """Checks what is asked for. None leaves the recipe's value, or that of the model to fine-tune.

    start: the model to fine-tune. distill: the model to distil; `steps` are then the sampler's.

    Raises:
        UsageError: a value breaks its rule, or a file is missing or wrong.
    """
    if distill is not None:
        if start is not None:
            raise UsageError(
                f"from={start!r}", "does not go with --distill", "leave one of the two out"
            )
        if target is None and data is None:
            if distill != BUILT_IN:
                raise UsageError(
                    f"distill={distill!r}", "needs captions to draw with", "use --data FOLDER"
                )
            target = BUILT_IN
        out = out or Path("runs") / f"{Path(distill).name}-lcm"
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
        usual = "some thousands are usual" if distill is None else "4 are usual"
        raise UsageError(f"steps={steps}", "is less than 1", usual)
    if distill is None:
        path = recipe or (EMOJI if data is None else IMAGEFOLDER)
        numbers = adjust_recipe(
            load_recipe(path), size=dim, steps=steps, seed=seed, finetuning=start is not None
        )
    else:
        path = recipe or DISTILLATION
        numbers = _plan_distillation(path, steps, seed)
    if data is None and numbers.scenes is None:
        raise UsageError(f"the recipe {path}", "has no table scenes", "the built-in model needs it")
    check_out(out)
    entries = None if data is None else read_entries(data)
    return Job(numbers, path, out, entries, start or distill, dim, device)


def _plan_distillation(path: Path, steps: int | None, seed: int | None) -> Recipe:
    """The recipe of a distillation; its scenes are those of the built-in model.

    steps: the sampler's.
    """
    stage = load_distillation(path)
    stage = replace(
        stage,
        sampler_steps=stage.sampler_steps if steps is None else steps,
        seed=stage.seed if seed is None else seed,
    )
    if stage.sampler_steps > MAX_DISTILLED_STEPS:
        raise UsageError(
            f"steps={stage.sampler_steps}",
            f"is more than the {MAX_DISTILLED_STEPS} timesteps that the sampler lcm chooses from",
            "with --distill it is the number of steps to draw in; 4 are usual",
        )
    return replace(load_recipe(EMOJI), seed=stage.seed, consistency=stage)
