"""`sdpipe generate`: draws images of a prompt."""

import json
import sys
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from sdpipe.cli import console, options
from sdpipe.cli.fallback import fall_back
from sdpipe.cli.groups import (
    DeviceOptions,
    ModelOptions,
    SettingsOptions,
    SpeedOptions,
    grouped,
)
from sdpipe.cli.save import STDOUT, check_stdout, save, save_to_stdout, tells_progress
from sdpipe.errors import UsageError
from sdpipe.io import names
from sdpipe.io.encoding import decode
from sdpipe.settings import MAX_IMAGES, Settings

if TYPE_CHECKING:
    from sdpipe.pipeline import Result

MAX_INPUT = 2**24  # bytes of standard input: 100,000 prompts of 160 letters


@grouped
def generate(
    prompt: options.Prompt,
    *,
    settings: SettingsOptions,
    model: ModelOptions,
    device: DeviceOptions,
    speed: SpeedOptions,
    out: options.Out = "outputs",
    format: options.Format = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    no_metadata: options.NoMetadata = False,
    no_mark: options.NoMark = False,
    debug: options.Debug = False,
) -> int:
    """Draws images of a prompt, and prints where each is as soon as its file is there."""
    from sdpipe.cli.preflight import check_early

    prompts = _prompts(prompt)
    inputs = settings.to_kwargs()
    n = inputs.pop("n")
    for text in prompts:
        Settings(prompt=text, n=n, **inputs)
    Settings(prompt=prompts[0], n=n * len(prompts), **inputs)  # the last seed is a seed too
    count = n * len(prompts)
    machine = {**device.to_kwargs(), **speed.to_kwargs()}
    if out == STDOUT:
        check_stdout(count, format, as_json=as_json, save_int=settings.values["save_int"])
        destination = None
    else:
        destination = names.Destination(out, count, format=format, overwrite=overwrite)
    content = {"with_metadata": not no_metadata, "mark": not no_mark}
    loaded = model.to_kwargs()
    fall_back(loaded, device.dtype, inputs)
    check_early(loaded, device.dtype, [(prompts, {**inputs, "n": n})])

    with console.status("loading the model ..."):
        from sdpipe import Pipeline
        from sdpipe.batch.engine import run_behind

        pipe = Pipeline(**loaded, **machine)
    started = time.monotonic()
    images, canvas = pipe.plan(prompts, n=n, **inputs)
    written: list[dict[str, Any]] = []
    failed: dict[int, Exception] = {}
    drawn_seed = images[0].seed if inputs["seed"] is None else None

    def keep(result: "Result") -> None:
        if destination is None:
            save_to_stdout(result, **content)
            return
        places = dict(enumerate(result.numbers))
        save(result, destination, places, written, show=not as_json, **content)

    try:
        with (
            tells_progress(written, len(images), drawn_seed),
            console.step_bar(len(images)) as on_step,
        ):
            results = pipe.draw(images, canvas, on_step=on_step, on_failed=failed.__setitem__)
            if inputs["save_int"]:  # the VAE decodes the steps: here, not beside the U-Net
                for result in results:
                    keep(result)
            else:
                deque(run_behind(partial(keep, result) for result in results), 0)
    finally:
        if as_json:
            console.print_result(json.dumps(written, ensure_ascii=False, indent=2))
    for i, error in failed.items():
        about = f"image {i + 1} of {len(images)}, of {images[i].prompt!r}"
        console.print_status(f"error: {about}: {console.describe(error)}")
    drawn = [settings for i, settings in enumerate(images) if i not in failed]
    if drawn:
        console.print_status(console.summary(drawn, time.monotonic() - started))
    return console.FAILED if failed else console.DONE


def _prompts(prompt: str) -> list[str]:
    """The prompt, or for - those on standard input, one a line."""
    if prompt != "-":
        return [prompt]
    data = sys.stdin.buffer.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        rule = f"has more than the {MAX_INPUT} bytes that are read"
        raise UsageError("standard input", rule, "give the prompts in parts")
    lines = [line.strip() for line in decode(data, "standard input").split("\n")]
    prompts = [line for line in lines if line]
    if len(prompts) > MAX_IMAGES:
        rule = f"has {len(prompts)} prompts, and at most {MAX_IMAGES} are drawn"
        raise UsageError("standard input", rule, "give them in parts")
    if not prompts:
        raise UsageError("standard input", "has no prompt", "give one a line")
    return prompts
