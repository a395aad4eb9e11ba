"""The command that draws many pictures: every combination of some settings' values, and a grid."""

import json
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpipe.cli import console as messages
from sdpipe.cli import options, progress
from sdpipe.cli.groups import Place, Speed, Weights, grouped
from sdpipe.errors import SdpipeWarning, UsageError
from sdpipe.init import sides
from sdpipe.io import files
from sdpipe.settings import SCHEDULERS
from sdpipe.sweep import axes as ranges
from sdpipe.sweep.sweep import BATCH, SWEPT, Sweep

if TYPE_CHECKING:
    from sdpipe.sweep.folder import SweepFolder

YES_NO = {"yes": True, "true": True, "no": False, "false": False}


def several(panel: str, help: str, *names: str) -> Any:
    """An option that takes one value or more."""
    return options.option(panel, help, *names, metavar="VALUES")


Prompt = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT", help="What to draw; a part {cat|dog} is drawn with each alternative."
    ),
]
Negative = Annotated[
    str | None,
    options.option(
        options.PICTURE,
        "What the pictures should not show; may have parts {a|b} too.",
        "--negative-prompt",
        metavar="TEXT",
    ),
]
Seed = Annotated[
    str | None,
    several(options.PICTURE, "As in 1-4; a single one is for all pictures. Drawn if left out."),
]
Variation = Annotated[
    str | None, several(options.PICTURE, "How far to go over to another seed's noise, 0 to 1.")
]
VariationSeed = Annotated[str | None, several(options.PICTURE, "That other seed, as in 1-4.")]
Dim = Annotated[str | None, several(options.PICTURE, "Width and height, multiples of 8.")]
Width = Annotated[str | None, several(options.PICTURE, "Width alone, in place of --dim.")]
Height = Annotated[str | None, several(options.PICTURE, "Height alone.")]
Guidance = Annotated[
    str | None,
    several(
        options.SAMPLING,
        "How strictly to follow the prompt, as in 1,3,7.5,12:4.",
        "--g",
        "--guidance-scale",
    ),
]
Rescale = Annotated[
    str | None,
    several(
        options.SAMPLING, "How much of its spread the guided output gets back, as in 0,0.4,0.7."
    ),
]
Interval = Annotated[
    str | None,
    several(
        options.SAMPLING,
        "Noise levels to guide between, as in '0,15; 0.3,5': pairs, with semicolons.",
    ),
]
Steps = Annotated[str | None, several(options.SAMPLING, "Denoising steps, as in '10-50 [5]'.")]
Scheduler = Annotated[
    str | None, several(options.SAMPLING, f"{', '.join(SCHEDULERS)}.", "--scheduler", "--sampler")
]
LmsOrder = Annotated[
    str | None, several(options.SAMPLING, "Predictions that a step of lms combines, as in 1-4.")
]
Karras = Annotated[
    str | None, several(options.SAMPLING, "Noise levels as Karras et al. space them: yes, no.")
]
ClipSkip = Annotated[
    str | None,
    several(options.SAMPLING, "Layer of the text encoder to listen to, from the last, 1."),
]
Hires = Annotated[
    str | None, several(options.HIRES, "Factors of a second pass that draws over, as in 1.5,2.")
]
HiresStrength = Annotated[
    str | None, several(options.HIRES, "How far back to noise for that, as in 0.3,0.5.")
]
Strength = Annotated[
    str | None, several(options.BEGINNING, "How far back to noise, as in '0.3-0.9 (+0.2)'.")
]
Batch = Annotated[
    int,
    options.whole(
        options.MODEL, "Pictures at once, at most; 1 takes the least memory. Seeds make batches."
    ),
]
Out = Annotated[
    str | None,
    options.option(
        options.OUTPUT,
        "A folder. Left out: one in outputs, named after the prompt and what varies.",
        "--out",
        "-o",
        metavar="FOLDER",
    ),
]
Json = Annotated[
    bool, options.flag(options.OUTPUT, "Print the grid and every picture, as JSON.", "--json")
]


@grouped
def sweep(
    context: typer.Context,
    prompt: Prompt,
    *,
    negative_prompt: Negative = None,
    seed: Seed = None,
    variation_strength: Variation = None,
    variation_seed: VariationSeed = None,
    dim: Dim = None,
    width: Width = None,
    height: Height = None,
    g: Guidance = None,
    guidance_rescale: Rescale = None,
    guidance_interval: Interval = None,
    steps: Steps = None,
    scheduler: Scheduler = None,
    lms_order: LmsOrder = None,
    karras: Karras = None,
    seamless: options.Seamless = None,
    hires_scale: Hires = None,
    hires_strength: HiresStrength = None,
    clip_skip: ClipSkip = None,
    batch_invariant: options.Exact = False,
    safety: options.Safety = "off",
    init_image: options.Init = None,
    mask_image: options.Mask = None,
    strength: Strength = None,
    fit: options.Fit = None,
    outpaint: options.Outpaint = None,
    weights: Weights,
    place: Place,
    speed: Speed,
    batch: Batch = BATCH,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> int:
    """Draws every combination of the values of up to three settings, and a grid of them all.

    VALUES are 1,3,7.5 or ranges: 1-5, '1-9 (+2)' in steps of 2, '10-50 [5]' five of them. What
    varies first goes across, parts of the prompt before options; the second goes down, the third
    makes a grid for each value. Stopped, the same command goes on where it was.
    """
    from sdpipe.cli.preflight import cells, check_early

    loaded = weights.checked()
    plan = _planned(context.params)
    machine = {**place.checked(), **speed.checked()}
    if batch < 1:
        raise UsageError(f"batch={batch} is out of range: 1 or more pictures are drawn at once.")
    folder = _folder(out, plan)
    check_early(loaded, place.dtype, cells(plan))
    for remark in plan.remarks:
        messages.say(remark)

    with warnings.catch_warnings():
        warnings.simplefilter("once", SdpipeWarning)  # what is true of every cell is said once
        with progress.status("loading the model ..."):
            from sdpipe import Pipeline
            from sdpipe.sweep.folder import SweepFolder

            pipe = Pipeline(**loaded, **machine)
        with progress.status("looking what is there ..."):
            work = SweepFolder(folder, plan, pipe)
        return _drawn(work, batch, as_json)


def _planned(given: dict[str, Any]) -> Sweep:
    """The sweep that was typed; typer keeps the order in which options were."""
    if given["prompt"] == "-":
        raise UsageError(
            "a sweep reads no prompts from standard input; write them into one: {red apple|violin}."
        )
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name in SWEPT and text is not None:
            values[name] = _values(name, options.text(f"--{name}", text))
    if given["negative_prompt"] is not None:
        values["negative_prompt"] = options.text("--negative-prompt", given["negative_prompt"])
    values |= options.pictures(given["init_image"], given["mask_image"])
    values["seamless"] = given["seamless"]
    values["fit"] = given["fit"]
    values["outpaint"] = None if given["outpaint"] is None else sides(given["outpaint"])
    values["safety"] = None if given["safety"] == "off" else given["safety"]
    if given["batch_invariant"]:
        values["batch_invariant"] = True
    return Sweep(options.text("the prompt", given["prompt"]), **values)


def _values(name: str, text: str) -> list[Any]:
    if name == "g":
        return ranges.scales(name, text)
    if name == "guidance_interval":
        return [part.strip() for part in text.split(";")]
    if name in (
        "guidance_rescale",
        "variation_strength",
        "strength",
        "hires_scale",
        "hires_strength",
    ):
        return ranges.numbers(name, text)
    if name == "scheduler":
        return ranges.words(name, text)
    if name != "karras":
        return ranges.whole_numbers(name, text)
    found = ranges.words(name, text)
    for word in found:
        if word.lower() not in YES_NO:
            raise UsageError(f"karras={word!r} is neither yes nor no; give yes, no, or both.")
    return [YES_NO[word.lower()] for word in found]


def _folder(out: str | None, plan: Sweep) -> Path:
    """Where the pictures go: the same for the same command.

    Raises:
        UsageError: it is a file, or cannot be written.
    """
    if out is None:
        names = [axis.name for axis in plan.axes if "prompt" not in axis.name]
        by = f"-by-{'-'.join(names)}" if names else ""
        out = f"outputs/sweep-{files.slug(plan.prompt)}{by}"
    elif Path(out).suffix.lower() in (*files.FORMATS, *files.OTHER_SUFFIXES):
        raise UsageError(
            f"{out} is the name of a picture, and a sweep fills a folder; give one, such as "
            f"{Path(out).stem or 'sweep'}."
        )
    return files.Destination(f"{out}/", len(plan.cells)).folder


def _drawn(work: "SweepFolder", batch: int, as_json: bool) -> int:
    """Draws what is missing, then the grid; prints where they are. The exit status."""
    for remark in work.remarks:
        messages.say(remark)
    cells, there = len(work.settings), set(work.paths)
    if 0 < len(there) < cells:
        messages.say(f"{len(there)} of {cells} pictures are there already.")
    grid = None
    started = time.monotonic()
    try:
        if len(there) < cells:
            with progress.bar(f"drawing {_pictures(cells - len(there))}") as on_step:
                for i in work.draw(batch, on_step):
                    messages.say_flagged(str(work.paths[i]), work.safety.get(i))
        with progress.status("putting the grid together ..."):
            grid = str(work.save_grid())
        if not as_json:
            messages.print_result(grid)
    except KeyboardInterrupt:
        messages.say(f"{len(work.paths)} of {cells} pictures are done; the same command goes on.")
        raise
    finally:
        if as_json:
            messages.print_result(_json(work, there, grid))
    for i, reason in work.failed.items():
        messages.say(f"error: {work.sweep.cells[i].name}: {reason}")
    drawn = len(work.paths) - len(there)
    parts = [f"{drawn} drawn in {time.monotonic() - started:.1f} s"] if drawn else []
    parts += [f"{len(there)} there before"] if there else []
    parts += [f"{len(work.failed)} without a picture"] if work.failed else []
    messages.say(f"{_pictures(cells)}: {', '.join(parts)}")
    return messages.FAILED if work.failed else 0


def _json(work: "SweepFolder", there: set[int], grid: str | None) -> str:
    cells = []
    for i, (cell, settings) in enumerate(zip(work.sweep.cells, work.settings, strict=True)):
        path = work.paths.get(i)
        cells.append(
            {
                "place": list(cell.place),
                "path": None if path is None else str(path),
                "drawn": path is not None and i not in there,
                "settings": settings.to_dict(),
                **({"safety": work.safety[i]} if i in work.safety else {}),
            }
        )
    told = {"grid": grid, "sweep": work.sweep.to_dict(), "cells": cells}
    return json.dumps(told, ensure_ascii=False, indent=2)


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"
