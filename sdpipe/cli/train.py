"""The command that trains a model: the built-in one, or one on pictures of one's own."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from sdpipe.cli import console as messages
from sdpipe.cli import options, progress
from sdpipe.errors import SdpipeError

PANEL = "Training"

What = Annotated[
    str | None,
    typer.Argument(metavar="emoji", help="emoji trains the built-in model, on drawn emoji."),
]
Data = Annotated[
    Path | None,
    options.option(
        PANEL,
        "A folder of pictures with a metadata.jsonl: file_name and text, a line for each.",
        metavar="FOLDER",
    ),
]
Out = Annotated[
    Path | None,
    options.option(
        PANEL,
        "Where the model goes, and what a second start goes on from. Of emoji: runs/emoji.",
        "--out",
        "-o",
        metavar="FOLDER",
    ),
]
Start = Annotated[
    str | None,
    options.option(
        PANEL, "Go on from this model: emoji, a folder or a hub id.", "--from", metavar="NAME"
    ),
]
Dim = Annotated[
    int | None,
    options.whole(PANEL, "Width and height: the recipe's, or those of --from, if left out."),
]
Steps = Annotated[
    int | None,
    options.whole(PANEL, "Steps of the U-Net; those of the other parts change in proportion."),
]
Seed = Annotated[int | None, options.whole(PANEL, "Starts the weights, and draws the batches.")]
Recipe = Annotated[
    Path | None,
    options.option(PANEL, "A TOML file with all numbers. Left out: sdpipe's own.", metavar="FILE"),
]


def train(
    what: What = None,
    data: Data = None,
    out: Out = None,
    start: Start = None,
    dim: Dim = None,
    steps: Steps = None,
    seed: Seed = None,
    recipe: Recipe = None,
    device: options.Device = "auto",
    debug: options.Debug = False,
) -> None:
    """Trains a model: the built-in one, or one on a folder of pictures with captions.

    The folder has a metadata.jsonl, or .csv, with file_name and text of each picture. Stopped, the
    same command goes on from the last checkpoint. What it is doing is seen in OUT/training.
    """
    from sdpipe.training.job import plan_job

    try:
        job = plan_job(
            what,
            data=data,
            out=out,
            start=start,
            dim=dim,
            steps=steps,
            seed=seed,
            recipe=recipe,
            device=device,
        )
    except SdpipeError:
        if os.environ.get("RANK", "0") != "0":  # one of several processes: the first says it
            raise typer.Exit(messages.FAILED) from None
        raise
    with progress.status("loading the libraries ..."):
        from sdpipe.training.train import train as run
    folder = run(job)
    if folder is not None:  # else the first process has it
        messages.print_result(str(folder))
        caption = "red apple" if job.entries is None else job.entries[0].text
        prompt, model = shlex.quote(caption), shlex.quote(str(folder))
        messages.say(f"draw with it: sdpipe generate {prompt} --model {model}")
