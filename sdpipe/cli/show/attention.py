"""`sdpipe show attention`: the cross-attention of each word."""

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, SamplingOptions, grouped
from sdpipe.cli.show.options import OutputOptions, Prompt, load
from sdpipe.show import checks


@grouped
def attention(
    prompt: Prompt,
    *,
    sampling: SamplingOptions,
    model: ModelOptions,
    device: DeviceOptions,
    output: OutputOptions,
    debug: options.Debug = False,
) -> None:
    """Draws an image, and over it a map of the attention to each word."""
    inputs = sampling.check(prompt)
    checks.check_attention(prompt, sampling.values["g"])
    drawing = output.check("attention", prompt)
    pipe = load(model, device, inputs)
    from sdpipe.show.attention import attention_data, attention_figure

    with console.step_bar(1) as on_step:
        data = attention_data(pipe, prompt, on_step=on_step, **inputs)
    console.print_result(drawing.finish(data.to_dict(), lambda: attention_figure(data)))
