"""`sdpipe show noise`: an image with the noise of several timesteps."""

from pathlib import Path
from typing import Annotated, Any

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, grouped
from sdpipe.cli.show.options import SHOW, Image, Numbers, OutputOptions, Seed, load, parse_numbers
from sdpipe.settings import Settings
from sdpipe.show import checks


@grouped
def noise(
    image: Image,
    *,
    t: Annotated[
        Numbers | None,
        options.option(
            SHOW,
            "Timesteps, 0 to 999. Default: 0,100,250,500,750,999.",
            "--t",
            metavar="N,N,...",
            parser=parse_numbers,
        ),
    ] = None,
    seed: Seed = None,
    dim: Annotated[Any, options.setting("dim")] = None,
    model: ModelOptions,
    device: DeviceOptions,
    output: OutputOptions,
    debug: options.Debug = False,
) -> None:
    """Draws the forward process: an image with the noise of several timesteps."""
    from sdpipe.io.pixels import read_image

    times = Numbers((0, 100, 250, 500, 750, 999)) if t is None else t
    checks.check_times(times)
    inputs = {"seed": seed, "dim": dim}
    Settings(prompt="", **inputs)
    pixels = read_image(image)
    drawing = output.check("noise", Path(image).stem)
    pipe = load(model, device, inputs)
    from sdpipe.show.noise import noise_data, noise_figure

    data = noise_data(pipe, pixels, times, **inputs)
    console.print_result(drawing.finish(data.to_dict(), lambda: noise_figure(data)))
