"""The command that draws an image again."""

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpipe.cli import console, options
from sdpipe.cli.save import save, tells_progress
from sdpipe.errors import UsageError
from sdpipe.io import names
from sdpipe.metadata.save import metadata_for
from sdpipe.settings import DEFAULT_OF, FROM_IMAGE, IMAGE, OUTPUT, RULES, check_name

if TYPE_CHECKING:
    from sdpipe.metadata.replay import ReplayJob
    from sdpipe.metadata.verify import Verdict
    from sdpipe.pipeline import Pipeline, Result

Image = Annotated[str, typer.Argument(metavar="IMAGE", help="PNG, JPEG or WebP.")]
Verify = Annotated[
    bool,
    options.flag(OUTPUT, "Write nothing; say whether the images are the same.", "--verify"),
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
        "The image that it was drawn from; its metadata holds only name and hash.",
        metavar="FILE",
    ),
]
Mask = Annotated[str | None, options.option(FROM_IMAGE, "The mask of that image.", metavar="FILE")]
Model = Annotated[
    str | None,
    options.option(
        options.MODEL,
        "In place of the model that the image names. A path, or a model that is not on this "
        "machine, is only loaded if given here.",
        metavar="NAME",
    ),
]
Vae = Annotated[
    str | None,
    options.option(
        options.MODEL, "The VAE that replaced the model's own, or another.", metavar="NAME"
    ),
]
LoraFiles = Annotated[
    list[str] | None,
    options.option(
        options.MODEL,
        "A LoRA that it was drawn with; its metadata holds name, hash and weight.",
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
    options.option(options.MODEL, "Default: the image's, if this machine has it.", metavar="NAME"),
]
Dtype = Annotated[
    str | None, options.option(options.MODEL, "Default: the image's.", metavar="NAME")
]
Out = Annotated[
    str | None,
    options.option(
        OUTPUT,
        "A folder, where images are numbered, or a .png, .jpg or .webp file. Default: outputs, or "
        "nothing with --verify.",
        "--out",
        "-o",
        metavar="PATH",
    ),
]


def replay(
    image: Image,
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
    format: options.Format = None,
    overwrite: options.Overwrite = False,
    as_json: options.PrintJson = False,
    no_metadata: options.NoMetadata = False,
    no_mark: options.NoMark = False,
    debug: options.Debug = False,
) -> int:
    """Draws an image again from its metadata, or with --set another image like it.

    With --verify the exit status is 0 if the two are identical, 3 if they are as close as on
    another machine, and 1 otherwise.
    """
    from sdpipe.metadata.replay import prepare

    new = parse_changes(changes or [])
    if verify and new:
        raise UsageError(
            "--verify", "compares an image with itself, and --set makes another", "leave one out"
        )
    job = prepare(
        image,
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
        place = "outputs" if out is None else out
        count = len(job.indices)
        destination = names.Destination(place, count, format=format, overwrite=overwrite)
    notes = list(job.notes)
    _print_notes(image, notes)
    with console.status("loading the model ..."):
        pipe = job.load(low_memory=low_memory)
    _print_notes(image, found := job.compare_weights(pipe))
    notes += found
    started = time.monotonic()
    report: dict[str, Any] = {"image": image, "notes": notes}
    if destination is not None:
        report["written"] = []
    content = {"with_metadata": not no_metadata, "mark": not no_mark, "show": not as_json}
    result = _draw(job, pipe, destination, report.get("written", []), content)
    seconds = time.monotonic() - started

    status = 0
    if verify:
        verdict = _verdict(image, job, result)
        status = verdict.status
        report.update(verdict.to_dict())
        if not as_json:
            console.print_result(str(verdict))
    if as_json:
        console.print_result(json.dumps(report, ensure_ascii=False, indent=2))
    drawn = [result.settings[k] for k in job.indices]
    console.print_status(console.summary(drawn, seconds) + _compare_hashes(job, result))
    return status


def _draw(
    job: "ReplayJob",
    pipe: "Pipeline",
    destination: names.Destination | None,
    written: list[dict[str, Any]],
    content: dict[str, bool],
) -> "Result":
    """Draws, and saves the wanted images of each batch as soon as it is decoded."""
    from sdpipe.pipeline import Result

    drawn = []
    with (
        tells_progress(written, len(job.indices), None),
        console.step_bar(job.n) as on_step,
    ):
        for result in job.draw(pipe, on_step, save_int=None if destination else False):
            if destination is not None:
                places = {k: i for k, i in enumerate(result.numbers) if i in job.indices}
                save(result, destination, places, written, **content)
            drawn.append(replace(result, steps=[]))
    return Result.join(drawn)


def _print_notes(image: str, notes: Iterable[str]) -> None:
    for note in notes:
        console.print_status(f"{Path(image).name}: {note}")


def _verdict(image: str, job: "ReplayJob", result: "Result") -> "Verdict":
    from sdpipe.metadata.verify import verify

    now = metadata_for(result, job.index)["sdpipe"]
    return verify(image, job.record, result.images[job.index], now)


def _compare_hashes(job: "ReplayJob", result: "Result") -> str:
    """The end of the summary: whether the pixels are the recorded ones, if a hash is recorded."""
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
