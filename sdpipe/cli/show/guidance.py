"""`sdpipe show guidance`: the predictions of classifier-free guidance."""

from typing import Annotated

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, SamplingOptions, grouped
from sdpipe.cli.show.options import SHOW, Numbers, OutputOptions, Prompt, load, parse_numbers
from sdpipe.show import checks


@grouped
def guidance(
    prompt: Prompt,
    *,
    at: Annotated[
        Numbers | None,
        options.option(
            SHOW,
            "Steps to show, from 0. Default: six, from first to last.",
            metavar="N,N,...",
            parser=parse_numbers,
        ),
    ] = None,
    sampling: SamplingOptions,
    model: ModelOptions,
    device: DeviceOptions,
    output: OutputOptions,
    debug: options.Debug = False,
) -> None:
    """Draws the two predictions of classifier-free guidance and the guided one, step by step."""
    from sdpipe.loading.parts import read_defaults

    inputs = sampling.check(prompt)
    chosen = at or Numbers()
    known = {**read_defaults(model.model), **{k: v for k, v in inputs.items() if v is not None}}
    checks.check_guidance(known.get("g"), known.get("steps"), known.get("scheduler"))
    checks.check_at(chosen, known.get("steps"), known.get("scheduler"))
    drawing = output.check("guidance", prompt)
    pipe = load(model, device, inputs)
    from sdpipe.show.guidance import guidance_data, guidance_figure

    with console.step_bar(1) as on_step:
        data = guidance_data(pipe, prompt, chosen, on_step=on_step, **inputs)
    console.print_result(drawing.finish(data.to_dict(), lambda: guidance_figure(data)))
