"""The command line: parse, call, print. What a command does is done elsewhere."""

import json
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import sdpipe
from sdpipe.cli import compare as cli_compare
from sdpipe.cli import console as messages
from sdpipe.cli import doctor as cli_doctor
from sdpipe.cli import info as cli_info
from sdpipe.cli import names as cli_names
from sdpipe.cli import options, progress
from sdpipe.cli import replay as cli_replay
from sdpipe.cli import sweep as cli_sweep
from sdpipe.cli import train as cli_train
from sdpipe.cli.groups import (
    DeviceOptions,
    ModelOptions,
    SettingsOptions,
    SpeedOptions,
    grouped,
)
from sdpipe.cli.interrupt import interruptible
from sdpipe.cli.save import save
from sdpipe.cli.show import show_app
from sdpipe.errors import UsageError
from sdpipe.io import files
from sdpipe.settings import Settings

DONE, INTERRUPTED = 0, 130

app = typer.Typer(
    help="Draws pictures from text with Stable Diffusion, and shows every step of it.",
    epilog="Example:  sdpipe generate 'red apple' --seed 42",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        print(f"sdpipe {sdpipe.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, metavar=" ", help="Print it."
        ),
    ] = False,
    debug: options.Debug = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")  # rich prints it itself, and returns nothing


@app.command(
    short_help="Draw pictures of a prompt.",
    epilog="Example:  sdpipe generate 'red apple' --model emoji --seed 42 --n 4 --out apples",
)
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
    """Draws pictures of a prompt and prints where they are."""
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

    with progress.status("loading the model ..."):
        from sdpipe import Pipeline

        pipe = Pipeline(**loaded, **machine)
    started = time.monotonic()
    with progress.step_bar(images) as on_step:
        result = pipe.generate(prompts, n=n, on_step=on_step, **inputs)
    seconds = time.monotonic() - started

    written: list[dict[str, Any]] = []
    try:
        save(pipe, result, destination, written, show=not as_json, with_metadata=not no_metadata)
    finally:
        if as_json:
            messages.print_result(json.dumps(written, ensure_ascii=False, indent=2))
    messages.say(messages.summary(result.settings, seconds))


app.command(
    short_help="Draw many pictures, and a grid of them.",
    epilog="Example:  sdpipe sweep 'a {cat|dog}' --model emoji --g 1,3,7.5 --seed 1-4",
)(cli_sweep.sweep)
app.command(
    short_help="Train a model on captioned pictures.",
    epilog="Example:  sdpipe train --data photos --out runs/photos --dim 128",
)(cli_train.train)
app.add_typer(show_app, name="show")
app.command(
    short_help="List what a model draws, by name.",
    epilog="Example:  sdpipe names cat",
)(cli_names.names)
app.command(short_help="Show the metadata of images.")(cli_info.info)
app.command(short_help="Draw an image again, and verify that it is the same.")(cli_replay.replay)
app.command(
    short_help="Compare with diffusers' pipeline, step by step.",
    epilog="Example:  sdpipe compare 'red apple' --model emoji --seed 42 --out curve.png",
)(cli_compare.compare)
app.command(short_help="Check the installation.")(cli_doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: 0 done, 1 failed, 2 wrong usage.

    replay adds 3, see `verify`. Interrupted it exits, with 130, or 143 by SIGTERM.
    """
    with interruptible() as interruption, warnings.catch_warnings():
        messages.tell_warnings(debug=False)
        try:
            status = app(arguments, prog_name="sdpipe", standalone_mode=False) or DONE
        except KeyboardInterrupt:
            status = INTERRUPTED
        except _TyperUsageError as error:
            status = _explain_usage(error)
        except Exception as error:
            # What an interrupt made of a library in the middle of something is no news.
            status = INTERRUPTED if interruption.status else messages.explain(error)
        if interruption.status:
            messages.say("interrupted")
            interruption.end()
    return int(status)


# typer brings a click of its own; what it exports of it are the leaves of this class.
_TyperUsageError: Any = typer.BadParameter.__base__


def _explain_usage(error: Any) -> int:
    command = error.ctx.command_path if error.ctx is not None else "sdpipe"
    message = error.format_message().removesuffix(".")
    message += "" if message.endswith("?") else "."
    messages.say(f"error: {message} See {command} --help.")
    return messages.WRONG_USAGE


def _prompts(prompt: str) -> list[str]:
    if prompt != "-":
        return [options.text("the prompt", prompt)]
    try:
        lines = [line.strip() for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text ({error}).") from error
    prompts = [options.text("standard input", line) for line in lines if line]
    if not prompts:
        raise UsageError("standard input has no prompt; give one a line.")
    return prompts
