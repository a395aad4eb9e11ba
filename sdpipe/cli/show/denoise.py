"""`sdpipe show denoise`: one call of the U-Net, with its formulas."""

from typing import Annotated

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, SamplingOptions, grouped
from sdpipe.cli.show.options import SHOW, OutputOptions, Prompt, load
from sdpipe.show import checks


@grouped
def denoise(
    prompt: Prompt,
    *,
    t: Annotated[int, options.whole(SHOW, "The timestep, 0 to 999.", "--t")] = 500,
    image: Annotated[
        str | None,
        options.option(SHOW, "Use this image instead of drawing one.", metavar="FILE"),
    ] = None,
    sampling: SamplingOptions,
    model: ModelOptions,
    device: DeviceOptions,
    output: OutputOptions,
    debug: options.Debug = False,
) -> None:
    """Draws an image with noise, the noise that the U-Net predicts, and the image without it."""
    from sdpipe.io.pixels import read_image

    checks.check_times([t])
    inputs = sampling.check(prompt)
    pixels = None if image is None else read_image(image)
    drawing = output.check("denoise", prompt)
    pipe = load(model, device, inputs)
    from sdpipe.show.denoise import denoise_data, denoise_figure

    with console.step_bar(1) as on_step:
        data = denoise_data(pipe, prompt, t, image=pixels, on_step=on_step, **inputs)
    console.print_result(drawing.finish(data.to_dict(), lambda: denoise_figure(data)))
