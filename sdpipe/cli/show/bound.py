"""`sdpipe show bound`: the variational bound of an image."""

from pathlib import Path
from typing import Annotated, Any

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, grouped
from sdpipe.cli.show.options import SHOW, Image, OutputOptions, Seed, load
from sdpipe.settings import Settings
from sdpipe.show import checks


@grouped
def bound(
    image: Image,
    *,
    prompt: Annotated[
        str, options.option(SHOW, "What the image shows. Default: nothing.", metavar="TEXT")
    ] = "",
    points: Annotated[
        int,
        options.whole(SHOW, "Timesteps at which the U-Net is called, 1 to 999.", "--points"),
    ] = 100,
    seed: Seed = None,
    dim: Annotated[Any, options.setting("dim")] = None,
    model: ModelOptions,
    device: DeviceOptions,
    output: OutputOptions,
    debug: options.Debug = False,
) -> None:
    """Draws the variational bound: what the image costs in nats, timestep by timestep."""
    from sdpipe.io.pixels import read_image

    checks.check_points(points)
    inputs = {"seed": seed, "dim": dim}
    Settings(prompt=prompt, **inputs)
    pixels = read_image(image)
    drawing = output.check("bound", Path(image).stem)
    pipe = load(model, device, inputs)
    from sdpipe.show.bound import bound_data, bound_figure

    with console.status(f"calling the U-Net at {points} timesteps ..."):
        data = bound_data(pipe, pixels, prompt, points, **inputs)
    console.print_result(drawing.finish(data.to_dict(), lambda: bound_figure(data)))
