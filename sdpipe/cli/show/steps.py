"""`sdpipe show steps`: noise becoming an image: a filmstrip or a film."""

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, SamplingOptions, grouped
from sdpipe.cli.show.options import FilmOptions, Prompt, load
from sdpipe.show.output import PIXELS


@grouped
def steps(
    prompt: Prompt,
    *,
    sampling: SamplingOptions,
    model: ModelOptions,
    device: DeviceOptions,
    output: FilmOptions,
    debug: options.Debug = False,
) -> None:
    """Draws x_t and the predicted x_0 over the steps, as a filmstrip or a film."""
    inputs = sampling.check(prompt)
    drawing = output.check("steps", prompt, formats=PIXELS)
    pipe = load(model, device, inputs)
    from sdpipe.show.films import MOST, steps_film
    from sdpipe.show.steps import steps_data

    with console.step_bar(1) as on_step:
        data = steps_data(pipe, prompt, on_step=on_step, **inputs)
    with console.status("decoding the steps ..."):
        text = drawing.finish(data.to_dict(), data.strip, lambda: steps_film(data.columns(MOST)))
    console.print_result(text)
