"""The command line: `app` has the commands, `main` runs one and returns its exit status."""

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import sdpipe
from sdpipe.cli import batch as cli_batch
from sdpipe.cli import compare as cli_compare
from sdpipe.cli import console, options
from sdpipe.cli import doctor as cli_doctor
from sdpipe.cli import generate as cli_generate
from sdpipe.cli import info as cli_info
from sdpipe.cli import names as cli_names
from sdpipe.cli import replay as cli_replay
from sdpipe.cli import serve as cli_serve
from sdpipe.cli import sweep as cli_sweep
from sdpipe.cli import train as cli_train
from sdpipe.cli.interrupt import INTERRUPTED, end_process, interruptible
from sdpipe.cli.show import show_app
from sdpipe.settings import our_name

app = typer.Typer(
    help="Draws images from text with Stable Diffusion, and shows every step of it.",
    epilog="Example:  sdpipe generate 'red apple' --seed 42\n\nExit status:  0 done, 1 failed, "
    "2 what was typed is wrong or not there, 3 replay --verify came close, 130 interrupted.",
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
            "--version",
            callback=_print_version,
            is_eager=True,
            metavar=" ",
            help="Show the version and exit.",
        ),
    ] = False,
    debug: options.Debug = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")  # rich prints it itself, and returns nothing


app.command(
    short_help="Draw images of a prompt.",
    epilog="Example:  sdpipe generate 'red apple' --model emoji --seed 42 -n 4 --out apples",
)(cli_generate.generate)
app.command(
    short_help="Draw many images, and a grid of them.",
    epilog="Example:  sdpipe sweep 'a {cat|dog}' --model emoji --g 1,3,7.5 --seed 1-4",
)(cli_sweep.sweep)
app.command(
    short_help="Draw the jobs of a file, each once.",
    epilog="Example:  sdpipe batch jobs.jsonl --model emoji --out apples",
)(cli_batch.batch)
app.command(
    short_help="Serve images over HTTP, and a page to draw on.",
    epilog="Example:  sdpipe serve --model emoji",
)(cli_serve.serve)
app.command(
    short_help="Train a model on captioned images.",
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
    console.open_streams()
    with interruptible() as interruption, warnings.catch_warnings():
        console.install_warning_printer(debug=False)
        try:
            typed = _fill_in(sys.argv[1:] if arguments is None else arguments)
            status = app(typed, prog_name="sdpipe", standalone_mode=False) or console.DONE
        except KeyboardInterrupt:
            status = INTERRUPTED
        except _TyperUsageError as error:
            status = _report_usage_error(error)
        except Exception as error:
            # What an interrupt made of a library in the middle of something is no news.
            status = INTERRUPTED if interruption.status else console.report_error(error)
        if interruption.status:
            console.print_status("interrupted")
            end_process(interruption.status)
    return int(status or (console.FAILED if console.is_output_lost() else console.DONE))


def _fill_in(typed: Sequence[str]) -> list[str]:
    """What was typed, with the value of `--ray` where it has none: typer asks for one."""
    pairs = zip(typed, [*typed[1:], "-"], strict=False)
    return [
        f"{word}=auto" if word == "--ray" and after.startswith("-") else word
        for word, after in pairs
    ]


# typer brings a click of its own; what it exports of it are the leaves of this class.
_TyperUsageError: Any = typer.BadParameter.__base__


def _report_usage_error(error: Any) -> int:
    command = error.ctx.command_path if error.ctx is not None else "sdpipe"
    message = _in_our_words(error) or error.format_message().removesuffix(".")
    message += "" if message.endswith("?") else "."
    console.print_status(f"error: {message} See {command} --help.")
    return console.WRONG_USAGE


def _in_our_words(error: Any) -> str:
    """What an option of another program is called here, where the command has it."""
    typed = getattr(error, "option_name", "")
    if error.ctx is None or (ours := our_name(typed)) is None:
        return ""
    if ours == "prompt":
        return f"{typed} is not needed: give the prompt as it is, in quotation marks"
    options = {
        parameter.name: max(parameter.opts, key=len) for parameter in error.ctx.command.params
    }
    names = [options[name] for name in ours.split(" and ") if name in options]
    return f"{typed} is called {' and '.join(names)} here" if names else ""
