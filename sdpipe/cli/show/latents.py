"""`sdpipe show latents`: the latents of an image, and the image decoded from them."""

from pathlib import Path
from typing import Annotated, Any

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, grouped
from sdpipe.cli.show.options import Image, OutputOptions, load
from sdpipe.settings import Settings


@grouped
def latents(
    image: Image,
    *,
    dim: Annotated[Any, options.setting("dim")] = None,
    model: ModelOptions,
    device: DeviceOptions,
    output: OutputOptions,
    debug: options.Debug = False,
) -> None:
    """Draws the latents of an image by channel, the decoded image, and the difference."""
    from sdpipe.io.pixels import read_image

    inputs = {"dim": dim}
    Settings(prompt="", **inputs)
    pixels = read_image(image)
    drawing = output.check("latents", Path(image).stem)
    pipe = load(model, device, inputs)
    from sdpipe.show.latents import latents_data, latents_figure

    data = latents_data(pipe, pixels, **inputs)
    console.print_result(drawing.finish(data.to_dict(), lambda: latents_figure(data)))
