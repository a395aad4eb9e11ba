"""The command that trains a model: the built-in one, or one on a folder of images."""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from sdpipe.cli import console, options
from sdpipe.errors import SdpipeError

PANEL = "Training"
REPORT_EVERY = 30.0  # seconds between two lines of progress where there is no terminal

Target = Annotated[
    str | None,
    typer.Argument(metavar="emoji", help="emoji: train the built-in model."),
]
Data = Annotated[
    Path | None,
    options.option(
        PANEL,
        "A folder of images with a metadata.jsonl: a line for each, with file_name and text.",
        metavar="FOLDER",
    ),
]
Out = Annotated[
    Path | None,
    options.option(
        PANEL,
        "The folder for the model; of a stopped run, to continue it. Of emoji: runs/emoji; of "
        "--distill: runs/NAME-lcm.",
        "--out",
        "-o",
        metavar="FOLDER",
    ),
]
Start = Annotated[
    str | None,
    options.option(
        PANEL, "The model to fine-tune: emoji, a folder or a hub id.", "--from", metavar="NAME"
    ),
]
Distill = Annotated[
    str | None,
    options.option(
        PANEL,
        "The model to distil: makes a LoRA with which it draws in --steps steps at g 1.",
        metavar="NAME",
    ),
]
Dim = Annotated[
    int | None,
    options.whole(PANEL, "Width and height; left out: those of the recipe, or of --from."),
]
Steps = Annotated[
    int | None,
    options.whole(
        PANEL,
        "Steps of the U-Net; those of other stages change in proportion. With --distill: steps to "
        "draw in, 4 if left out.",
    ),
]
Seed = Annotated[int | None, options.whole(PANEL, "Seed of the weights and the batches.")]
Recipe = Annotated[
    Path | None,
    options.option(PANEL, "A TOML file with all numbers; left out: sdpipe's.", metavar="FILE"),
]


def train(
    target: Target = None,
    data: Data = None,
    out: Out = None,
    start: Start = None,
    distill: Distill = None,
    dim: Dim = None,
    steps: Steps = None,
    seed: Seed = None,
    recipe: Recipe = None,
    device: options.Device = "auto",
    debug: options.Debug = False,
) -> None:
    """Train a model: the built-in one, or one on a folder of images with captions.

    The folder has a metadata.jsonl, or .csv, with file_name and text of each image. Stopped, the
    same command continues from the last checkpoint. OUT/training has losses and sample sheets.
    """
    from sdpipe.training.job import plan_job

    try:
        job = plan_job(
            target,
            data=data,
            out=out,
            start=start,
            distill=distill,
            dim=dim,
            steps=steps,
            seed=seed,
            recipe=recipe,
            device=device,
        )
    except SdpipeError:
        if os.environ.get("RANK", "0") != "0":  # one of several processes: the first reports it
            raise typer.Exit(console.FAILED) from None
        raise
    with console.status("loading the libraries ..."):
        from sdpipe.training.train import train as run
    with TrainingProgress() as show:
        made = run(job, progress=show, log=console.print_status)
    if made is not None:  # else this is not the first process
        console.print_result(str(made))
        caption = "red apple" if job.entries is None else job.entries[0].text
        words = ["sdpipe", "generate", caption, "--model", str(made)]
        if distill is not None:
            words[-1:] = [distill, "--lora", str(made)]
        console.print_status(f"draw with it: {shlex.join(words)}")


class TrainingProgress:
    """Shows the stages of a training: a bar for each on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self.task, self.reported = "", time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Shows that `done` of `total` steps of a task are done; `note` is its latest loss."""
        if not sys.stderr.isatty():
            now = time.monotonic()
            if done == total or now - self.reported > REPORT_EVERY:
                self.reported = now
                console.print_status(f"{task}: {done} of {total}{', ' if note else ''}{note}")
            return
        if task != self.task:
            from tqdm import tqdm

            if self.bar is not None:
                self.bar.close()
            self.task = task
            self.bar = tqdm(
                desc=task, initial=done, total=total, file=sys.stderr, dynamic_ncols=True
            )
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)
