"""`sdpipe sweep`: draws every combination of the values of some settings, and a grid."""

import contextlib
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpipe.cli import console, options
from sdpipe.cli.fallback import fall_back
from sdpipe.cli.groups import (
    DeviceOptions,
    ModelOptions,
    SettingsOptions,
    SpeedOptions,
    grouped,
)
from sdpipe.errors import SdpipeWarning, UsageError
from sdpipe.io import names
from sdpipe.settings import DEFAULT_OF, OUTPUT, RULES
from sdpipe.sweep import axes as ranges
from sdpipe.sweep.sweep import SINGLE, SWEPT, Sweep

if TYPE_CHECKING:
    from sdpipe.denoise import Step
    from sdpipe.sweep.folder import SweepFolder


class SweepOptions(SettingsOptions):
    """The settings of a sweep, several values of a setting among them."""

    names = (*(name for name in RULES if name in (*SWEPT, *SINGLE)),)
    several = (*SWEPT,)


Prompt = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT", help="What to draw; a part {cat|dog} is drawn with each alternative."
    ),
]
Batch = Annotated[
    int,
    options.whole(
        options.MODEL, "Images at once, at most; 1 takes the least memory. Seeds make batches."
    ),
]
Out = Annotated[
    str | None,
    options.option(
        OUTPUT,
        "A folder. Left out: one in outputs, named after the prompt and what varies.",
        "--out",
        "-o",
        metavar="FOLDER",
    ),
]
Json = Annotated[bool, options.flag(OUTPUT, "Print the grid and every image, as JSON.", "--json")]


@grouped
def sweep(
    context: typer.Context,
    prompt: Prompt,
    *,
    settings: SweepOptions,
    model: ModelOptions,
    device: DeviceOptions,
    speed: SpeedOptions,
    batch: Batch = 8,
    out: Out = None,
    as_json: Json = False,
    no_mark: options.NoMark = False,
    debug: options.Debug = False,
) -> int:
    """Draws every combination of the values of up to three settings, and a grid of them all.

    VALUES are 1,3,7.5 or ranges: 1-5, '1-9 (+2)' in steps of 2, '10-50 [5]' five of them. What
    varies first goes across, parts of the prompt before options; the second goes down, the third
    makes a grid for each value. Stopped, the same command goes on where it was.
    """
    from sdpipe.cli.preflight import cells, check_early

    loaded = model.to_kwargs()
    given, typed = settings.to_kwargs(), list(context.params)
    plan = _plan(prompt, given, typed)
    machine = {**device.to_kwargs(), **speed.to_kwargs()}
    if batch < 1:
        raise UsageError(f"batch={batch}", "is out of range", "draw 1 image or more at once")
    folder = _folder(out, plan)
    if fall_back(loaded, device.dtype, given):
        plan = _plan(prompt, given, typed)
    check_early(loaded, device.dtype, cells(plan))
    for remark in plan.notes:
        console.print_status(remark)

    with warnings.catch_warnings():
        warnings.simplefilter("once", SdpipeWarning)  # what is true of every cell is said once
        with console.status("loading the model ..."):
            from sdpipe import Pipeline
            from sdpipe.sweep.folder import SweepFolder

            pipe = Pipeline(**loaded, **machine)
        with console.status("looking for images ..."):
            work = SweepFolder(folder, plan, pipe, mark=not no_mark)
        return _drawn(work, batch, as_json)


def _plan(prompt: str, given: Mapping[str, Any], typed: list[str]) -> Sweep:
    """The sweep that was typed; its axes are in the order of `typed`, the names of the options."""
    if prompt == "-":
        raise UsageError(
            "a sweep",
            "reads no prompts from standard input",
            "write them into one: {red apple|violin}",
        )
    values: dict[str, Any] = {}
    for name in sorted(given, key=typed.index):
        if name in SWEPT and given[name] is not None:
            values[name] = ranges.parse_values(name, given[name])
        elif given[name] != DEFAULT_OF[name]:
            values[name] = given[name]
    return Sweep(prompt, **values)


def _folder(out: str | None, plan: Sweep) -> Path:
    """Where the images go: the same for the same command.

    Raises:
        UsageError: it is a file, or cannot be written.
    """
    if out is None:
        varied = [axis.name for axis in plan.axes if "prompt" not in axis.name]
        by = f"-by-{'-'.join(varied)}" if varied else ""
        out = f"outputs/sweep-{names.slug(plan.prompt)}{by}"
    elif Path(out).suffix.lower() in (*names.FORMATS, *names.OTHER_SUFFIXES):
        raise UsageError(
            f"--out {out}",
            "is the name of an image, and a sweep fills a folder",
            f"give one, such as {Path(out).stem or 'sweep'}",
        )
    return names.Destination(f"{out}/", len(plan.cells)).folder


def _drawn(work: "SweepFolder", batch: int, as_json: bool) -> int:
    """Draws what is missing, then the grid; prints where they are. The exit status."""
    for remark in work.notes:
        console.print_status(remark)
    cells, there = len(work.settings), set(work.paths)
    if 0 < len(there) < cells:
        console.print_status(f"{len(there)} of {cells} images are there already.")
    grid, drawn, started = None, set[int](), time.monotonic()
    try:
        if work.missing:
            _draw_missing(work, batch, drawn)
        with console.status("laying out the grid ..."):
            grid = str(work.save_grid())
        if not as_json:
            console.print_result(grid)
    except KeyboardInterrupt:
        console.print_status(
            f"{len(work.paths)} of {cells} images are done; the same command goes on."
        )
        raise
    finally:
        if as_json:
            console.print_result(_json(work, drawn, grid))
    for i, reason in work.failed.items():
        console.print_status(f"error: {work.sweep.cells[i].name}: {reason}")
    parts = [f"{len(drawn)} drawn in {time.monotonic() - started:.1f} s"] if drawn else []
    parts += [f"{len(there)} there before"] if there else []
    others = len(work.paths) - len(drawn) - len(there)
    parts += [f"{others} drawn by another process"] if others else []
    parts += [f"{len(work.failed)} without an image"] if work.failed else []
    console.print_status(f"{_count(cells)}: {', '.join(parts)}")
    return console.FAILED if work.failed else 0


def _draw_missing(work: "SweepFolder", batch: int, drawn: set[int]) -> None:
    """Draws the missing cells, and adds each to `drawn` when its file is there."""
    steps = [settings.steps for settings in work.settings]
    total = sum(steps[i] for i in work.missing)
    with console.bar(f"drawing {_count(len(work.missing))}") as move:

        def count(step: "Step") -> None:
            move(sum(steps[i] for i in drawn) + len(step.images) * (step.index + 1), total)

        with contextlib.closing(work.draw(batch, count, lambda: _wait(work))) as cells:
            for i in cells:
                drawn.add(i)
                console.print_flagged(str(work.paths[i]), work.safety.get(i))


def _wait(work: "SweepFolder") -> None:
    """Waits a second for the images that another process draws."""
    with console.status(f"another process draws {_count(len(work.missing))} ..."):
        time.sleep(1)


def _json(work: "SweepFolder", drawn: set[int], grid: str | None) -> str:
    cells = []
    for i, (cell, settings) in enumerate(zip(work.sweep.cells, work.settings, strict=True)):
        path = work.paths.get(i)
        cells.append(
            {
                "index": list(cell.index),
                "path": None if path is None else str(path),
                "drawn": i in drawn,
                "settings": settings.to_dict(),
                **({"safety": work.safety[i]} if i in work.safety else {}),
            }
        )
    report = {"grid": grid, "sweep": work.sweep.to_dict(), "cells": cells}
    return json.dumps(report, ensure_ascii=False, indent=2)


def _count(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"
