"""The commands that draw what happens inside: parse, check, call, print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdpipe import messages, options, progress
from sdpipe.errors import UsageError
from sdpipe.groups import Place, Sampling, Weights, embeddings, grouped
from sdpipe.loading.embedding import Embedding
from sdpipe.settings import SCHEDULERS, Settings
from sdpipe.show import checks
from sdpipe.show.output import PIXELS, Output

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline

SHOW = "Show"

show_app = typer.Typer(
    help="Draw what happens inside: a PNG of each part of the way from noise to picture.",
    epilog="Example:  sdpipe show attention 'owl on a blue background' --model emoji --seed 3",
)


class Numbers(list[int]):
    """Whole numbers; a class of its own, for a list would be an option given many times."""


class Names(list[str]):
    """Names, in the same way."""


def numbers(text: str) -> Numbers:
    """Whole numbers with commas between them."""
    try:
        return Numbers(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of whole numbers with commas, such as 0,5,10"
        ) from None


def names(text: str) -> Names:
    """Names with commas between them."""
    return Names(part.strip() for part in text.split(","))


def one_of_two(text: str) -> int:
    """A seed of --seeds, which takes two words."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a whole number; give two with a space between them, as in 1 2"
        ) from None


Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")]
Picture = Annotated[
    str, typer.Argument(metavar="PICTURE", help="Any picture file; its middle is taken.")
]
Out = Annotated[
    str | None,
    options.option(
        options.OUTPUT,
        "A folder, or a .png, .svg or .pdf file. What exists is never overwritten. Left out: "
        "outputs, or nowhere with --json, --gif or --mp4.",
        metavar="PATH",
    ),
]
Json = Annotated[
    bool, options.flag(options.OUTPUT, "Print the numbers behind it, as JSON.", "--json")
]
Gif = Annotated[
    str | None, options.option(options.OUTPUT, "A film of it.", "--gif", metavar="FILE")
]
Mp4 = Annotated[
    str | None, options.option(options.OUTPUT, "The film as MP4.", "--mp4", metavar="FILE")
]
Seed = Annotated[int | None, options.whole(options.PICTURE, "Starts the noise. Drawn if left out.")]


@show_app.callback(invoke_without_command=True)
def _top(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


@show_app.command(short_help="The words of a prompt as tokens.")
def tokens(
    prompt: Prompt,
    model: options.Model = None,
    embedding: options.EmbeddingFiles = None,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws how a prompt is cut into tokens, and what of it the text encoder never sees."""
    Settings(prompt=options.text("the prompt", prompt))
    output = Output("tokens", prompt, out=out, as_json=as_json)
    inversions = [Embedding.read(given) for given in embeddings(embedding)]
    from sdpipe.show.parts import load_tokenizer
    from sdpipe.show.tokens import tokens_data, tokens_figure

    data = tokens_data(load_tokenizer(model, inversions), prompt)
    messages.print_result(output.finish(data.numbers(), lambda: tokens_figure(data)))


@show_app.command(short_help="Noise over time, and where the steps are.")
def schedule(
    scheduler: Annotated[
        Names | None,
        options.option(
            options.SAMPLING,
            f"One or more, as in lms,ddim. Left out: {', '.join(SCHEDULERS)}.",
            metavar="NAMES",
            parser=names,
        ),
    ] = None,
    steps: options.Steps = None,
    karras: options.Karras = False,
    model: options.Model = None,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws sigma and alpha_bar over time, and at which times each scheduler takes its steps."""
    chosen = scheduler or Names()
    checks.check_schedule(chosen, steps, karras)
    output = Output("schedule", " ".join(chosen), out=out, as_json=as_json)
    from sdpipe.show.parts import read_defaults, read_scheduler
    from sdpipe.show.schedule import schedule_data, schedule_figure

    steps = read_defaults(model).get("steps") if steps is None else steps
    data = schedule_data(read_scheduler(model), chosen, steps, karras=karras)
    messages.print_result(output.finish(data.numbers(), lambda: schedule_figure(data)))


@show_app.command(short_help="A picture that drowns in noise.")
@grouped
def noise(
    picture: Picture,
    *,
    t: Annotated[
        Numbers | None,
        options.option(
            SHOW,
            "Timesteps, 0 to 999. Left out: 0,100,250,500,750,999.",
            "--t",
            metavar="N,N,...",
            parser=numbers,
        ),
    ] = None,
    seed: Seed = None,
    dim: options.Dim = None,
    weights: Weights,
    place: Place,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws the forward process: a picture with the noise of some timesteps, in latents."""
    from sdpipe.pixels import read_picture

    times = Numbers((0, 100, 250, 500, 750, 999)) if t is None else t
    checks.check_times(times)
    Settings(prompt="", seed=seed, dim=dim)
    image = read_picture(picture)
    output = Output("noise", Path(picture).stem, out=out, as_json=as_json)
    pipe = _load(weights, place)
    from sdpipe.show.noise import noise_data, noise_figure

    data = noise_data(pipe, image, times, seed=seed, dim=dim)
    messages.print_result(output.finish(data.numbers(), lambda: noise_figure(data)))


@show_app.command(short_help="The latents of a picture, and what comes back.")
@grouped
def latents(
    picture: Picture,
    *,
    dim: options.Dim = None,
    weights: Weights,
    place: Place,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws the channels of a picture's latents, what they decode to, and the difference."""
    from sdpipe.pixels import read_picture

    Settings(prompt="", dim=dim)
    image = read_picture(picture)
    output = Output("latents", Path(picture).stem, out=out, as_json=as_json)
    pipe = _load(weights, place)
    from sdpipe.show.latents import latents_data, latents_figure

    data = latents_data(pipe, image, dim=dim)
    messages.print_result(output.finish(data.numbers(), lambda: latents_figure(data)))


@show_app.command(short_help="One call of the U-Net, with its formulas.")
@grouped
def denoise(
    prompt: Prompt,
    *,
    t: Annotated[int, options.whole(SHOW, "The timestep, 0 to 999.", "--t")] = 500,
    picture: Annotated[
        str | None,
        options.option(SHOW, "In place of one drawn from the prompt.", metavar="FILE"),
    ] = None,
    seed: Seed = None,
    sampling: Sampling,
    weights: Weights,
    place: Place,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws a noised picture, the noise that one call of the U-Net sees in it, and what is left."""
    from sdpipe.pixels import read_picture

    checks.check_times([t])
    inputs = sampling.checked(prompt, seed)
    image = None if picture is None else read_picture(picture)
    output = Output("denoise", prompt, out=out, as_json=as_json)
    pipe = _load(weights, place)
    from sdpipe.show.denoise import denoise_data, denoise_figure

    with progress.step_bar(1) as on_step:
        data = denoise_data(pipe, prompt, t, picture=image, on_step=on_step, **inputs)
    messages.print_result(output.finish(data.numbers(), lambda: denoise_figure(data)))


@show_app.command(
    short_help="Noise becoming a picture: strip or film.",
    epilog="Example:  sdpipe show steps 'red apple' --model emoji --gif apple.gif",
)
@grouped
def steps(
    prompt: Prompt,
    *,
    seed: Seed = None,
    sampling: Sampling,
    weights: Weights,
    place: Place,
    out: Annotated[
        str | None,
        options.option(
            options.OUTPUT,
            "A folder, or a .png file. What exists is never overwritten. Left out: outputs, or "
            "nowhere with --json, --gif or --mp4.",
            metavar="PATH",
        ),
    ] = None,
    gif: Gif = None,
    mp4: Mp4 = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws a filmstrip of x_t and of the picture that is predicted from it, or a film of all."""
    inputs = sampling.checked(prompt, seed)
    output = Output("steps", prompt, out=out, as_json=as_json, gif=gif, mp4=mp4, formats=PIXELS)
    pipe = _load(weights, place)
    from sdpipe.show.course import steps_data
    from sdpipe.show.films import MOST, steps_film

    with progress.step_bar(1) as on_step:
        data = steps_data(pipe, prompt, on_step=on_step, **inputs)
    with progress.status("decoding the steps ..."):
        told = output.finish(data.numbers(), data.strip, lambda: steps_film(data.columns(MOST)))
    messages.print_result(told)


@show_app.command(short_help="Without the prompt, with it, and guided.")
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
    seed: Seed = None,
    sampling: Sampling,
    weights: Weights,
    place: Place,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws the two predictions of classifier-free guidance and the guided one, step by step."""
    from sdpipe.show.parts import read_defaults

    inputs = sampling.checked(prompt, seed)
    chosen = at or Numbers()
    known = {**read_defaults(weights.model), **{k: v for k, v in inputs.items() if v is not None}}
    checks.check_guidance(known.get("g"), known.get("steps"), known.get("scheduler"))
    checks.check_at(chosen, known.get("steps"), known.get("scheduler"))
    output = Output("guidance", prompt, out=out, as_json=as_json)
    pipe = _load(weights, place)
    from sdpipe.show.guidance import guidance_data, guidance_figure

    with progress.step_bar(1) as on_step:
        data = guidance_data(pipe, prompt, chosen, on_step=on_step, **inputs)
    messages.print_result(output.finish(data.numbers(), lambda: guidance_figure(data)))


@show_app.command(short_help="Where each word acted.")
@grouped
def attention(
    prompt: Prompt,
    *,
    seed: Seed = None,
    sampling: Sampling,
    weights: Weights,
    place: Place,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws a picture, and over it for each word how much attention it got in every place."""
    inputs = sampling.checked(prompt, seed)
    checks.check_attention(prompt, sampling.g)
    output = Output("attention", prompt, out=out, as_json=as_json)
    pipe = _load(weights, place)
    from sdpipe.show.attention import attention_data, attention_figure

    with progress.step_bar(1) as on_step:
        data = attention_data(pipe, prompt, on_step=on_step, **inputs)
    messages.print_result(output.finish(data.numbers(), lambda: attention_figure(data)))


@show_app.command(
    short_help="From one picture to another.",
    epilog="Example:  sdpipe show interpolate 'red apple' 'green apple' --model emoji --seeds 1 2",
    context_settings={"allow_extra_args": True},
)
@grouped
def interpolate(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="PROMPT", help="What is drawn first.")],
    last: Annotated[str, typer.Argument(metavar="PROMPT", help="What is drawn last.")],
    *,
    seeds: Annotated[
        tuple[int, int] | None,
        options.option(
            options.PICTURE,
            "Of both ends; twice the same keeps the noise. Left out: one is drawn, for both.",
            metavar="N N",
            parser=one_of_two,
        ),
    ] = None,
    frames: Annotated[int, options.whole(SHOW, "Pictures, both ends included.")] = 9,
    sampling: Sampling,
    weights: Weights,
    place: Place,
    out: Out = None,
    gif: Gif = None,
    mp4: Mp4 = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws the pictures between two: noises on the arc between them, prompts on a line."""
    if context.args:
        raise UsageError(
            f"{' '.join(context.args)!r} is too much: there are two prompts, each in quotation "
            "marks, and --seeds takes two numbers."
        )
    chosen = seeds or ()
    inputs = sampling.checked(first)
    options.text("the prompt", last)
    checks.check_way(frames, chosen, sampling.scheduler)
    output = Output("interpolate", f"{first} {last}", out=out, as_json=as_json, gif=gif, mp4=mp4)
    pipe = _load(weights, place)
    from sdpipe.show.films import way_film
    from sdpipe.show.interpolate import interpolate_data, interpolate_figure

    del inputs["seed"]
    with progress.bar("drawing") as on_frame:
        data = interpolate_data(
            pipe, first, last, seeds=chosen, frames=frames, on_frame=on_frame, **inputs
        )
    told = output.finish(data.numbers(), lambda: interpolate_figure(data), lambda: way_film(data))
    messages.print_result(told)


def _load(weights: Weights, place: Place) -> "Pipeline":
    machine = place.checked()
    loaded = weights.checked()
    with progress.status("loading the model ..."):
        from sdpipe import Pipeline

        return Pipeline(**loaded, **machine)
