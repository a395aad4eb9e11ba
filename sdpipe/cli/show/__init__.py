"""The command group `sdpipe show`; every file here bears the name of its command."""

import typer

from sdpipe.cli.show.attention import attention
from sdpipe.cli.show.bound import bound
from sdpipe.cli.show.denoise import denoise
from sdpipe.cli.show.guidance import guidance
from sdpipe.cli.show.interpolate import interpolate
from sdpipe.cli.show.latents import latents
from sdpipe.cli.show.noise import noise
from sdpipe.cli.show.schedule import schedule
from sdpipe.cli.show.steps import steps
from sdpipe.cli.show.tokens import tokens

show_app = typer.Typer(
    help="Draw what happens inside: a PNG of each stage on the way from noise to image.",
    epilog="Example:  sdpipe show attention 'owl on a blue background' --model emoji --seed 3",
)


@show_app.callback(invoke_without_command=True)
def _top(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


show_app.command(short_help="The words of a prompt as tokens.")(tokens)
show_app.command(short_help="The noise schedule, and the timesteps of each scheduler.")(schedule)
show_app.command(short_help="An image with more and more noise.")(noise)
show_app.command(short_help="The latents of an image, and the image decoded from them.")(latents)
show_app.command(short_help="One call of the U-Net, with its formulas.")(denoise)
show_app.command(
    short_help="Noise becoming an image: a filmstrip or a film.",
    epilog="Example:  sdpipe show steps 'red apple' --model emoji --gif apple.gif",
)(steps)
show_app.command(short_help="What an image costs in nats: the variational bound.")(bound)
show_app.command(short_help="The predictions without the prompt, with it, and guided.")(guidance)
show_app.command(short_help="Where each word acts on the image.")(attention)
show_app.command(
    short_help="The images between two images.",
    epilog="Example:  sdpipe show interpolate 'red apple' 'green apple' --model emoji --seeds 1 2",
    context_settings={"allow_extra_args": True},
)(interpolate)
