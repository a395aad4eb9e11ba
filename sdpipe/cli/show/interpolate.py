"""`sdpipe show interpolate`: images between two images."""

from typing import Annotated

import typer

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, SamplingOptions, grouped
from sdpipe.cli.show.options import SHOW, FilmOptions, load, parse_seed
from sdpipe.errors import UsageError
from sdpipe.settings import IMAGE
from sdpipe.show import checks


class EndsOptions(SamplingOptions):
    """The settings that both ends share: all but the seed."""

    names = SamplingOptions.names[1:]


@grouped
def interpolate(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="PROMPT", help="The first image.")],
    last: Annotated[str, typer.Argument(metavar="PROMPT", help="The last image.")],
    *,
    seeds: Annotated[
        tuple[int, int] | None,
        options.option(
            IMAGE,
            "Seeds of the first and last image; equal ones keep the noise. Default: a random one.",
            metavar="N N",
            parser=parse_seed,
        ),
    ] = None,
    frames: Annotated[int, options.whole(SHOW, "Images, both ends included.")] = 9,
    sampling: EndsOptions,
    model: ModelOptions,
    device: DeviceOptions,
    output: FilmOptions,
    debug: options.Debug = False,
) -> None:
    """Draws the images between two: noises on an arc, prompt embeddings on a line."""
    if context.args:
        raise UsageError(
            repr(" ".join(context.args)),
            "is too much",
            "put each of the two prompts in quotation marks, and give --seeds two numbers",
        )
    chosen = seeds or ()
    inputs = sampling.check(first)
    options.text("the prompt", last)
    checks.check_interpolation(frames, chosen, sampling.values["scheduler"])
    drawing = output.check("interpolate", f"{first} {last}")
    pipe = load(model, device, inputs)
    from sdpipe.show.films import interpolation_film
    from sdpipe.show.interpolate import interpolate_data, interpolate_figure

    with console.bar("drawing") as on_frame:
        data = interpolate_data(
            pipe, first, last, seeds=chosen, frames=frames, on_frame=on_frame, **inputs
        )
    text = drawing.finish(
        data.to_dict(), lambda: interpolate_figure(data), lambda: interpolation_film(data)
    )
    console.print_result(text)
