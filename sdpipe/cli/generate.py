"""`sdpipe generate`: draws images of a prompt."""

import json
import sys
import time
from typing import Any

from sdpipe.cli import console, options
from sdpipe.cli.groups import (
    DeviceOptions,
    ModelOptions,
    SettingsOptions,
    SpeedOptions,
    grouped,
)
from sdpipe.cli.save import save
from sdpipe.errors import UsageError
from sdpipe.io import files
from sdpipe.settings import Settings


@grouped
def generate(
    prompt: options.Prompt,
    *,
    settings: SettingsOptions,
    model: ModelOptions,
    device: DeviceOptions,
    speed: SpeedOptions,
    out: options.Out = "outputs",
    as_json: options.Json = False,
    no_metadata: options.NoMetadata = False,
    debug: options.Debug = False,
) -> None:
    """Draws images of a prompt and prints where they are."""
    from sdpipe.cli.preflight import check_early

    prompts = _prompts(prompt)
    inputs = settings.to_kwargs()
    n = inputs.pop("n")
    for text in prompts:
        Settings(prompt=text, n=n, **inputs)
    Settings(prompt=prompts[0], n=n * len(prompts), **inputs)  # the last seed is a seed too
    images = n * len(prompts)
    machine = {**device.to_kwargs(), **speed.to_kwargs()}
    destination = files.Destination(out, images)
    loaded = model.to_kwargs()
    check_early(loaded, device.dtype, [(prompts, {**inputs, "n": n})])

    with console.status("loading the model ..."):
        from sdpipe import Pipeline

        pipe = Pipeline(**loaded, **machine)
    started = time.monotonic()
    with console.step_bar(images) as on_step:
        result = pipe.generate(prompts, n=n, on_step=on_step, **inputs)
    seconds = time.monotonic() - started

    written: list[dict[str, Any]] = []
    try:
        save(result, destination, written, show=not as_json, with_metadata=not no_metadata)
    finally:
        if as_json:
            console.print_result(json.dumps(written, ensure_ascii=False, indent=2))
    console.print_status(console.summary(result.settings, seconds))


def _prompts(prompt: str) -> list[str]:
    """The prompt, or for - those on standard input, one a line."""
    if prompt != "-":
        return [prompt]
    try:
        lines = [line.strip() for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise UsageError("standard input", f"is not UTF-8 text ({error})") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise UsageError("standard input", "has no prompt", "give one a line")
    return prompts
