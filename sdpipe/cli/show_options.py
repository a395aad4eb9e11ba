"""What the commands that draw what happens inside have in common."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions
from sdpipe.settings import OUTPUT

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline

SHOW = "Show"


class Numbers(list[int]):
    """Whole numbers; a class of its own, for a list would be an option given many times."""


class Names(list[str]):
    """Names, in the same way."""


def numbers(text: str) -> Numbers:
    """Whole numbers with commas between them."""
    try:
        return Numbers(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of whole numbers with commas, such as 0,5,10"
        ) from None


def names(text: str) -> Names:
    """Names with commas between them."""
    return Names(part.strip() for part in text.split(","))


def one_of_two(text: str) -> int:
    """A seed of --seeds, which takes two words."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a whole number; give two with a space between them, as in 1 2"
        ) from None


Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")]
Picture = Annotated[
    str, typer.Argument(metavar="IMAGE", help="Any image file, cropped to its middle.")
]
Out = Annotated[
    str | None,
    options.option(
        OUTPUT,
        "A folder, or a .png, .svg or .pdf file. Existing files are never overwritten. Left out: "
        "outputs, or nowhere with --json, --gif or --mp4.",
        "--out",
        "-o",
        metavar="PATH",
    ),
]
Json = Annotated[bool, options.flag(OUTPUT, "Print the numbers behind it, as JSON.", "--json")]
Gif = Annotated[str | None, options.option(OUTPUT, "A film of it.", "--gif", metavar="FILE")]
Mp4 = Annotated[str | None, options.option(OUTPUT, "The film as MP4.", "--mp4", metavar="FILE")]
Seed = Annotated[Any, options.setting("seed")]


def load(model: ModelOptions, device: DeviceOptions) -> "Pipeline":
    """Checks both, and loads the model."""
    machine = device.to_kwargs()
    loaded = model.to_kwargs()
    with console.status("loading the model ..."):
        from sdpipe import Pipeline

        return Pipeline(**loaded, **machine)
