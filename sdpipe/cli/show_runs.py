"""The commands that draw an image, and what happened on its way."""

from typing import Annotated

import typer

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, SamplingOptions, grouped
from sdpipe.cli.show_options import (
    SHOW,
    Gif,
    Json,
    Mp4,
    Numbers,
    Out,
    Prompt,
    load,
    numbers,
    one_of_two,
)
from sdpipe.errors import UsageError
from sdpipe.settings import IMAGE, OUTPUT
from sdpipe.show import checks
from sdpipe.show.output import PIXELS, Output


@grouped
def denoise(
    prompt: Prompt,
    *,
    t: Annotated[int, options.whole(SHOW, "The timestep, 0 to 999.", "--t")] = 500,
    picture: Annotated[
        str | None,
        options.option(SHOW, "In place of one drawn from the prompt.", metavar="FILE"),
    ] = None,
    sampling: SamplingOptions,
    model: ModelOptions,
    device: DeviceOptions,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws a noised image, the noise that one call of the U-Net sees in it, and what is left."""
    from sdpipe.io.pixels import read_image

    checks.check_times([t])
    inputs = sampling.check(prompt)
    image = None if picture is None else read_image(picture)
    output = Output("denoise", prompt, out=out, as_json=as_json)
    pipe = load(model, device)
    from sdpipe.show.denoise import denoise_data, denoise_figure

    with console.step_bar(1) as on_step:
        data = denoise_data(pipe, prompt, t, picture=image, on_step=on_step, **inputs)
    console.print_result(output.finish(data.numbers(), lambda: denoise_figure(data)))


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
            "A folder, or a .png file. Existing files are never overwritten. Left out: outputs, or "
            "nowhere with --json, --gif or --mp4.",
            metavar="PATH",
        ),
    ] = None,
    gif: Gif = None,
    mp4: Mp4 = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws a filmstrip of x_t and of the image that is predicted from it, or a film of all."""
    inputs = sampling.check(prompt)
    output = Output("steps", prompt, out=out, as_json=as_json, gif=gif, mp4=mp4, formats=PIXELS)
    pipe = load(model, device)
    from sdpipe.show.course import steps_data
    from sdpipe.show.films import MOST, steps_film

    with console.step_bar(1) as on_step:
        data = steps_data(pipe, prompt, on_step=on_step, **inputs)
    with console.status("decoding the steps ..."):
        told = output.finish(data.numbers(), data.strip, lambda: steps_film(data.columns(MOST)))
    console.print_result(told)


@grouped
def guidance(
    prompt: Prompt,
    *,
    at: Annotated[
        Numbers | None,
        options.option(
            SHOW,
            "Steps to show, from 0. Left out: six, from first to last.",
            metavar="N,N,...",
            parser=numbers,
        ),
    ] = None,
    sampling: SamplingOptions,
    model: ModelOptions,
    device: DeviceOptions,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws the two predictions of classifier-free guidance and the guided one, step by step."""
    from sdpipe.loading.parts import read_defaults

    inputs = sampling.check(prompt)
    chosen = at or Numbers()
    known = {**read_defaults(model.model), **{k: v for k, v in inputs.items() if v is not None}}
    checks.check_guidance(known.get("g"), known.get("steps"), known.get("scheduler"))
    checks.check_at(chosen, known.get("steps"), known.get("scheduler"))
    output = Output("guidance", prompt, out=out, as_json=as_json)
    pipe = load(model, device)
    from sdpipe.show.guidance import guidance_data, guidance_figure

    with console.step_bar(1) as on_step:
        data = guidance_data(pipe, prompt, chosen, on_step=on_step, **inputs)
    console.print_result(output.finish(data.numbers(), lambda: guidance_figure(data)))


@grouped
def attention(
    prompt: Prompt,
    *,
    sampling: SamplingOptions,
    model: ModelOptions,
    device: DeviceOptions,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws an image, and over it for each word how much attention it got in every place."""
    inputs = sampling.check(prompt)
    checks.check_attention(prompt, sampling.values["g"])
    output = Output("attention", prompt, out=out, as_json=as_json)
    pipe = load(model, device)
    from sdpipe.show.attention import attention_data, attention_figure

    with console.step_bar(1) as on_step:
        data = attention_data(pipe, prompt, on_step=on_step, **inputs)
    console.print_result(output.finish(data.numbers(), lambda: attention_figure(data)))


class EndsOptions(SamplingOptions):
    """The settings that both ends of an interpolation have in common."""

    names = SamplingOptions.names[1:]


@grouped
def interpolate(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="PROMPT", help="What is drawn first.")],
    last: Annotated[str, typer.Argument(metavar="PROMPT", help="What is drawn last.")],
    *,
    seeds: Annotated[
        tuple[int, int] | None,
        options.option(
            IMAGE,
            "Of both ends; twice the same keeps the noise. Left out: one is drawn, for both.",
            metavar="N N",
            parser=one_of_two,
        ),
    ] = None,
    frames: Annotated[int, options.whole(SHOW, "Images, both ends included.")] = 9,
    sampling: EndsOptions,
    model: ModelOptions,
    device: DeviceOptions,
    out: Out = None,
    gif: Gif = None,
    mp4: Mp4 = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws the images between two: noises on the arc between them, prompts on a line."""
    if context.args:
        raise UsageError(
            f"{' '.join(context.args)!r} is too much: there are two prompts, each in quotation "
            "marks, and --seeds takes two numbers."
        )
    chosen = seeds or ()
    inputs = sampling.check(first)
    options.text("the prompt", last)
    checks.check_way(frames, chosen, sampling.values["scheduler"])
    output = Output("interpolate", f"{first} {last}", out=out, as_json=as_json, gif=gif, mp4=mp4)
    pipe = load(model, device)
    from sdpipe.show.films import way_film
    from sdpipe.show.interpolate import interpolate_data, interpolate_figure

    with console.bar("drawing") as on_frame:
        data = interpolate_data(
            pipe, first, last, seeds=chosen, frames=frames, on_frame=on_frame, **inputs
        )
    told = output.finish(data.numbers(), lambda: interpolate_figure(data), lambda: way_film(data))
    console.print_result(told)
