"""`sdpipe show steps`: noise becoming an image: a filmstrip or a film."""

from typing import Annotated

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, SamplingOptions, grouped
from sdpipe.cli.show.options import Gif, Json, Mp4, Prompt, load
from sdpipe.settings import OUTPUT
from sdpipe.show.output import PIXELS, Output


@grouped
def steps(
    prompt: Prompt,
    *,
    sampling: SamplingOptions,
    model: ModelOptions,
    device: DeviceOptions,
    out: Annotated[
        str | None,
        options.option(
            OUTPUT,
            "A folder, or a .png file. Existing files are not overwritten. Default: outputs, or "
            "nowhere with --json, --gif or --mp4.",
            metavar="PATH",
        ),
    ] = None,
    gif: Gif = None,
    mp4: Mp4 = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws x_t and the predicted x_0 over the steps, as a filmstrip or a film."""
    inputs = sampling.check(prompt)
    output = Output("steps", prompt, out=out, as_json=as_json, gif=gif, mp4=mp4, formats=PIXELS)
    pipe = load(model, device, inputs)
    from sdpipe.show.films import MOST, steps_film
    from sdpipe.show.steps import steps_data

    with console.step_bar(1) as on_step:
        data = steps_data(pipe, prompt, on_step=on_step, **inputs)
    with console.status("decoding the steps ..."):
        text = output.finish(data.to_dict(), data.strip, lambda: steps_film(data.columns(MOST)))
    console.print_result(text)
