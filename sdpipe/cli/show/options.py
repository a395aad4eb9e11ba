"""The options that the commands of `sdpipe show` share."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpipe.cli import console, options
from sdpipe.cli.fallback import fall_back
from sdpipe.cli.groups import DeviceOptions, ModelOptions, OptionGroup
from sdpipe.settings import OUTPUT
from sdpipe.show.output import DRAWINGS, Output

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline

SHOW = "Show"


class Numbers(list[int]):
    """Integers from one option; for a plain list typer expects the option several times."""


class Names(list[str]):
    """Names from one option."""


def parse_numbers(text: str) -> Numbers:
    """Parses integers separated by commas."""
    try:
        return Numbers(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of integers separated by commas, such as 0,5,10"
        ) from None


def parse_names(text: str) -> Names:
    """Parses names separated by commas."""
    return Names(part.strip() for part in text.split(","))


def parse_seed(text: str) -> int:
    """Parses one of the two values of --seeds."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not an integer; use two, separated by a space, as in 1 2"
        ) from None


Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")]
Image = Annotated[str, typer.Argument(metavar="IMAGE", help="Any image file; its middle is used.")]
Seed = Annotated[Any, options.setting("seed")]


@dataclass(frozen=True)
class OutputOptions(OptionGroup):
    """Where the drawing or the numbers go."""

    out: Annotated[
        str | None,
        options.option(
            OUTPUT,
            "A folder, or a .png file; of curves also .svg or .pdf. Default: outputs, or nowhere "
            "with numbers or films.",
            "--out",
            "-o",
            metavar="PATH",
        ),
    ] = None
    overwrite: options.Overwrite = False
    as_json: Annotated[bool, options.flag(OUTPUT, "Print the numbers as JSON.", "--json")] = False

    def check(self, name: str, about: str, formats: Sequence[str] = DRAWINGS) -> Output:
        """The output of a command, checked; raises as `Output`."""
        return Output(name, about, formats=formats, **dataclasses.asdict(self))


@dataclass(frozen=True)
class FilmOptions(OutputOptions):
    """Where the drawing, the films or the numbers go."""

    gif: Annotated[
        str | None, options.option(OUTPUT, "Write a film as GIF.", "--gif", metavar="FILE")
    ] = None
    mp4: Annotated[
        str | None, options.option(OUTPUT, "Write the film as MP4.", "--mp4", metavar="FILE")
    ] = None


def load(
    model: ModelOptions, device: DeviceOptions, settings: dict[str, Any] | None = None
) -> "Pipeline":
    """Checks the options and loads the model; `settings` are changed as by `fall_back`."""
    machine = device.to_kwargs()
    loaded = model.to_kwargs()
    fall_back(loaded, device.dtype, {} if settings is None else settings)
    with console.status("loading the model ..."):
        from sdpipe import Pipeline

        return Pipeline(**loaded, **machine)
