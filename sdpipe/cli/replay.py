"""The commands that begin with a picture: what it tells, and the same picture again."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpipe.cli import console as messages
from sdpipe.cli import options, progress
from sdpipe.errors import SdpipeError, UsageError
from sdpipe.io import files
from sdpipe.metadata import save as saving
from sdpipe.settings import DEFAULT_OF, FROM_IMAGE, IMAGE, OUTPUT, RULES, check_name

if TYPE_CHECKING:
    from sdpipe.metadata.replay import Job
    from sdpipe.metadata.verify import Verdict
    from sdpipe.pipeline import Pipeline, Result

Pictures = Annotated[list[str], typer.Argument(metavar="PICTURE", help="PNG, JPEG or WebP.")]
Picture = Annotated[str, typer.Argument(metavar="PICTURE", help="PNG, JPEG or WebP.")]
Verify = Annotated[
    bool,
    options.flag(
        OUTPUT, "Write nothing; say whether it is the same, or by how much not.", "--verify"
    ),
]
Set = Annotated[
    list[str] | None,
    options.option(
        IMAGE,
        "Change a setting, as in --set steps=80; can be given many times.",
        "--set",
        metavar="NAME=VALUE",
    ),
]
Init = Annotated[
    str | None,
    options.option(
        FROM_IMAGE,
        "The picture that it was drawn from; it tells only which that was.",
        metavar="FILE",
    ),
]
Mask = Annotated[str | None, options.option(FROM_IMAGE, "And its mask.", metavar="FILE")]
Model = Annotated[
    str | None,
    options.option(
        options.MODEL,
        "In place of the model that the picture names; a path, or what is not here yet, is only "
        "loaded if given here.",
        metavar="NAME",
    ),
]
Vae = Annotated[
    str | None,
    options.option(
        options.MODEL, "The VAE that took the place of the model's own, or another.", metavar="NAME"
    ),
]
LoraFiles = Annotated[
    list[str] | None,
    options.option(
        options.MODEL,
        "A LoRA that it was drawn with; it tells only which that was, and how much of it.",
        "--lora",
        metavar="FILE",
    ),
]
EmbeddingFiles = Annotated[
    list[str] | None,
    options.option(
        options.MODEL,
        "A textual inversion that it was drawn with.",
        "--embedding",
        metavar="FILE",
    ),
]
Device = Annotated[
    str | None,
    options.option(options.MODEL, "Left out: the picture's, if it is here.", metavar="NAME"),
]
Dtype = Annotated[
    str | None, options.option(options.MODEL, "Left out: the picture's.", metavar="NAME")
]
Out = Annotated[
    str | None,
    options.option(
        OUTPUT,
        "A folder, or a .png, .jpg or .webp file. Left out: outputs, or nowhere with --verify.",
        "--out",
        "-o",
        metavar="PATH",
    ),
]


def info(
    picture: Pictures, as_json: options.PrintJson = False, debug: options.Debug = False
) -> int:
    """Prints what pictures tell of how they were drawn: those of sdpipe, A1111 and InvokeAI."""
    from sdpipe.metadata.info import info as tell

    told: list[dict[str, Any]] = []
    status = 0
    for path in picture:
        try:
            found = tell(path)
        except SdpipeError as error:
            status = messages.explain(error)
            continue
        if not as_json:
            messages.print_result(f"\n{found}" if told else str(found))
        told.append(found.to_dict())
    if as_json:
        messages.print_result(json.dumps(told, ensure_ascii=False, indent=2))
    return status


def replay(
    picture: Picture,
    changes: Set = None,
    init_image: Init = None,
    mask_image: Mask = None,
    model: Model = None,
    vae: Vae = None,
    lora: LoraFiles = None,
    embedding: EmbeddingFiles = None,
    device: Device = None,
    dtype: Dtype = None,
    low_memory: options.LowMemory = False,
    verify: Verify = False,
    out: Out = None,
    as_json: options.PrintJson = False,
    debug: options.Debug = False,
) -> int:
    """Draws a picture again from what it carries, or, with --set, another one like it.

    With --verify the exit status is 0 where it came out identical, 3 where it is as close as
    another machine may draw it, and 1 where it is not.
    """
    from sdpipe.metadata.replay import prepare

    new = parse_changes(changes or [])
    if verify and new:
        raise UsageError(
            "--verify holds a picture against itself, and --set makes another of it; leave one out."
        )
    job = prepare(
        picture,
        model=model,
        vae=vae,
        device=device,
        dtype=dtype,
        changes=new,
        init_image=init_image,
        mask_image=mask_image,
        loras=[options.text("--lora", file) for file in lora or ()],
        embeddings=[options.text("--embedding", file) for file in embedding or ()],
    )
    destination = None
    if out is not None or not verify:
        destination = files.Destination("outputs" if out is None else out, len(job.wanted))
    remarks = list(job.remarks)
    _say(picture, remarks)
    with progress.status("loading the model ..."):
        pipe = job.load(low_memory=low_memory)
    _say(picture, found := job.check(pipe))
    remarks += found
    started = time.monotonic()
    with progress.step_bar(job.n) as on_step:
        result = job.draw(pipe, on_step, save_int=None if destination else False)
    seconds = time.monotonic() - started

    report: dict[str, Any] = {"picture": picture, "remarks": remarks}
    status = 0
    if verify:
        verdict = _verdict(picture, job, pipe, result)
        status = verdict.status
        report.update(verdict.to_dict())
        if not as_json:
            messages.print_result(str(verdict))
    if destination is not None:
        report["written"] = _written(job, pipe, result, destination, not as_json)
    if as_json:
        messages.print_result(json.dumps(report, ensure_ascii=False, indent=2))
    drawn = [result.settings[k] for k in job.wanted]
    messages.say(messages.summary(drawn, seconds) + _compared(job, result))
    return status


def _say(picture: str, remarks: Iterable[str]) -> None:
    for remark in remarks:
        messages.say(f"{Path(picture).name}: {remark}")


def _verdict(picture: str, job: "Job", pipe: "Pipeline", result: "Result") -> "Verdict":
    from sdpipe.metadata.verify import verify

    now = saving.carried(pipe, result, job.index)["sdpipe"]
    return verify(picture, job.record, result.images[job.index], now)


def _written(
    job: "Job", pipe: "Pipeline", result: "Result", destination: files.Destination, show: bool
) -> list[dict[str, Any]]:
    """Writes what was wanted, and its steps where they were kept."""
    written = []
    for entry in saving.saved(pipe, result, destination, some=job.wanted):
        written.append(entry)
        if show:
            messages.print_result(entry["path"])
        messages.say_flagged(entry["path"], entry.get("safety"))
    if result.steps:
        for k, entry in zip(job.wanted, written, strict=True):
            entry["steps"] = saving.saved_steps(pipe, result, k, entry["path"])
    return written


def _compared(job: "Job", result: "Result") -> str:
    """The end of the summary: whether it is the same again, where that can be told at once."""
    from sdpipe.io.pixels import pixels_sha256

    recorded = job.record.pixels_sha256
    if job.changed or recorded is None:
        return ""
    same = pixels_sha256(result.images[job.index]) == recorded
    return ", the recorded pixels" if same else ", not the recorded pixels: see --verify"


def parse_changes(pairs: Iterable[str]) -> dict[str, Any]:
    """Settings as a command line gives them, "steps=80"; `Settings` checks the values.

    Raises:
        UsageError: a pair without "=", an unknown name, or something that is no text.
    """
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair!r}", "has no value", "give NAME=VALUE, as in steps=80")
        check_name(name)
        if name in ("init_image", "mask_image"):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"--set {name}",
                "cannot change the image that this one was drawn from",
                f"give that image as {option}, or begin with another in sdpipe generate",
            )
        is_unset = not text and DEFAULT_OF[name] is None
        changes[name] = None if is_unset else RULES[name].parse(text)
    return changes
