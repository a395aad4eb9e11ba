"""The command group that draws what happens inside."""

import typer

from sdpipe.cli import show_parts as cli_show_parts
from sdpipe.cli import show_runs as cli_show_runs

show_app = typer.Typer(
    help="Draw what happens inside: a PNG of each part of the way from noise to image.",
    epilog="Example:  sdpipe show attention 'owl on a blue background' --model emoji --seed 3",
)


@show_app.callback(invoke_without_command=True)
def _top(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


show_app.command(short_help="The words of a prompt as tokens.")(cli_show_parts.tokens)
show_app.command(short_help="Noise over time, and where the steps are.")(cli_show_parts.schedule)
show_app.command(short_help="A image that drowns in noise.")(cli_show_parts.noise)
show_app.command(short_help="The latents of an image, and what comes back.")(cli_show_parts.latents)
show_app.command(short_help="One call of the U-Net, with its formulas.")(cli_show_runs.denoise)
show_app.command(
    short_help="Noise becoming an image: strip or film.",
    epilog="Example:  sdpipe show steps 'red apple' --model emoji --gif apple.gif",
)(cli_show_runs.steps)
show_app.command(short_help="Without the prompt, with it, and guided.")(cli_show_runs.guidance)
show_app.command(short_help="Where each word acted.")(cli_show_runs.attention)
show_app.command(
    short_help="From one image to another.",
    epilog="Example:  sdpipe show interpolate 'red apple' 'green apple' --model emoji --seeds 1 2",
    context_settings={"allow_extra_args": True},
)(cli_show_runs.interpolate)
