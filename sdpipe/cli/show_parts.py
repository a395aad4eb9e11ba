"""The commands that draw a part of the way by itself, without drawing an image for it."""

from pathlib import Path
from typing import Annotated, Any

from sdpipe.cli import console, options
from sdpipe.cli.groups import DeviceOptions, ModelOptions, embeddings, grouped
from sdpipe.cli.show_options import (
    SHOW,
    Json,
    Names,
    Numbers,
    Out,
    Picture,
    Prompt,
    Seed,
    load,
    names,
    numbers,
)
from sdpipe.loading.textual_inversion import Embedding
from sdpipe.settings import SAMPLING, SCHEDULERS, Settings
from sdpipe.show import checks
from sdpipe.show.output import Output


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
    from sdpipe.loading.parts import load_tokenizer
    from sdpipe.show.tokens import tokens_data, tokens_figure

    data = tokens_data(load_tokenizer(model, inversions), prompt)
    console.print_result(output.finish(data.numbers(), lambda: tokens_figure(data)))


def schedule(
    scheduler: Annotated[
        Names | None,
        options.option(
            SAMPLING,
            f"One or more, as in lms,ddim. Left out: {', '.join(SCHEDULERS)}.",
            metavar="NAMES",
            parser=names,
        ),
    ] = None,
    steps: Annotated[Any, options.setting("steps")] = None,
    karras: Annotated[bool, options.setting("karras")] = False,
    model: options.Model = None,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws sigma and alpha_bar over time, and at which times each scheduler takes its steps."""
    chosen = scheduler or Names()
    checks.check_schedule(chosen, steps, karras)
    output = Output("schedule", " ".join(chosen), out=out, as_json=as_json)
    from sdpipe.loading.parts import read_defaults, read_scheduler
    from sdpipe.show.schedule import schedule_data, schedule_figure

    steps = read_defaults(model).get("steps") if steps is None else steps
    data = schedule_data(read_scheduler(model), chosen, steps, karras=karras)
    console.print_result(output.finish(data.numbers(), lambda: schedule_figure(data)))


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
    dim: Annotated[Any, options.setting("dim")] = None,
    model: ModelOptions,
    device: DeviceOptions,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws the forward process: an image with the noise of some timesteps, in latents."""
    from sdpipe.io.pixels import read_image

    times = Numbers((0, 100, 250, 500, 750, 999)) if t is None else t
    checks.check_times(times)
    Settings(prompt="", seed=seed, dim=dim)
    image = read_image(picture)
    output = Output("noise", Path(picture).stem, out=out, as_json=as_json)
    pipe = load(model, device)
    from sdpipe.show.noise import noise_data, noise_figure

    data = noise_data(pipe, image, times, seed=seed, dim=dim)
    console.print_result(output.finish(data.numbers(), lambda: noise_figure(data)))


@grouped
def latents(
    picture: Picture,
    *,
    dim: Annotated[Any, options.setting("dim")] = None,
    model: ModelOptions,
    device: DeviceOptions,
    out: Out = None,
    as_json: Json = False,
    debug: options.Debug = False,
) -> None:
    """Draws the channels of an image's latents, what they decode to, and the difference."""
    from sdpipe.io.pixels import read_image

    Settings(prompt="", dim=dim)
    image = read_image(picture)
    output = Output("latents", Path(picture).stem, out=out, as_json=as_json)
    pipe = load(model, device)
    from sdpipe.show.latents import latents_data, latents_figure

    data = latents_data(pipe, image, dim=dim)
    console.print_result(output.finish(data.numbers(), lambda: latents_figure(data)))
