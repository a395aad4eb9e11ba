"""`sdpipe show latents`: the latents of an image, and the image decoded from them."""

from pathlib import Path
from typing import Annotated, Any

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, grouped
from sdpipe.cli.show.options import Image, Json, Out, load
from sdpipe.settings import Settings
from sdpipe.show.output import Output


@grouped
def latents(
    image: Image,
    *,
    dim: Annotated[Any, options.setting("dim")] = None,
    model: ModelOptions,
    device: DeviceOptions,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws the latents of an image by channel, the decoded image, and the difference."""
    from sdpipe.io.pixels import read_image

    inputs = {"dim": dim}
    Settings(prompt="", **inputs)
    pixels = read_image(image)
    output = Output("latents", Path(image).stem, out=out, as_json=as_json)
    pipe = load(model, device, inputs)
    from sdpipe.show.latents import latents_data, latents_figure

    data = latents_data(pipe, pixels, **inputs)
    console.print_result(output.finish(data.to_dict(), lambda: latents_figure(data)))
