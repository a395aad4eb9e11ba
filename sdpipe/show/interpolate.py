"""The way from one picture to another: between two noises, and between two prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from sdpipe.denoise import denoise
from sdpipe.guidance import Guidance
from sdpipe.latents import (
    angle_between,
    draw_noise,
    latents_to_pil,
    make_generators,
    slerp,
    vae_factor,
)
from sdpipe.prompt.encode import encode_prompts
from sdpipe.schedule import make_scheduler
from sdpipe.show import style
from sdpipe.show.checks import check_way
from sdpipe.show.stages import sampling, settle
from sdpipe.show.style import Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline
    from sdpipe.settings import Settings

FRAMES = 9


@dataclass(frozen=True, eq=False)
class Way:
    """Pictures between two.

    first, last: the settings of the pictures at both ends, which `Pipeline.generate` draws too.
    fractions: how far along each picture is, 0 to 1.
    angle: between the two noises, in degrees; 0 where they are the same.
    """

    first: "Settings"
    last: "Settings"
    fractions: list[float]
    angle: float
    pictures: list[Image.Image]

    def numbers(self) -> dict[str, Any]:
        """What can be said in JSON."""
        return {
            "first": self.first.to_dict(),
            "last": self.last.to_dict(),
            "fractions": self.fractions,
            "angle": self.angle,
        }


def interpolate_data(
    pipe: "Pipeline",
    first: str,
    last: str,
    *,
    seeds: Sequence[int] = (),
    frames: int = FRAMES,
    on_frame: Callable[[int, int], object] | None = None,
    **settings: Any,
) -> Way:
    """Draws the pictures between two: noises by `slerp`, embeddings on a straight line.

    seeds: of both ends, or one for both: then the noise stays and only the prompt changes. None
        are one that is drawn. The other settings are as `Pipeline.generate` takes them.
    on_frame: called with how many of how many pictures are done.

    The pictures at both ends are those of `Pipeline.generate`, bit for bit, unless one prompt has
    more chunks than the other, which is then filled up.

    Raises:
        UsageError: a value breaks its rule.
    """
    parts = pipe.components
    a = settle(pipe, first, seed=seeds[0] if seeds else None, **settings)
    b = settle(pipe, last, seed=seeds[-1] if seeds else a.seed, **settings)
    check_way(frames, seeds, a.scheduler)
    assert a.seed is not None
    assert b.seed is not None
    assert a.width is not None
    assert a.height is not None
    assert a.scheduler is not None
    assert a.steps is not None
    assert a.g is not None
    text = encode_prompts(
        parts.tokenizer,
        parts.text_encoder,
        [first, last],
        [a.negative_prompt],
        steps=a.steps,
        clip_skip=a.clip_skip,
    )
    factor = vae_factor(parts.vae)
    shape = (parts.unet.config.in_channels, a.height // factor, a.width // factor)
    noises = draw_noise(make_generators([a.seed, b.seed]), shape).split(1)
    fractions = [i / (frames - 1) for i in range(frames)]
    guidance = Guidance(a.g, a.guidance_rescale, a.guidance_interval)
    pictures = []
    for f in fractions:
        scheduler = make_scheduler(
            a.scheduler,
            parts.scheduler_config,
            a.steps,
            device=parts.device,
            karras=a.karras,
            lms_order=a.lms_order,
        )
        x_t = slerp(noises[0], noises[1], f).to(parts.device) * float(scheduler.init_noise_sigma)
        cond = [between(z[:1], z[1:], f) for z in text.cond]
        generators = make_generators([a.seed])
        draw_noise(generators, shape)  # what follows in it is the noise of later steps
        for step in denoise(parts.unet, scheduler, x_t, cond, text.uncond, guidance, generators):
            x_t = step.latents
        pictures += latents_to_pil(parts.vae, x_t)
        if on_frame is not None:
            on_frame(len(pictures), frames)
    angle = math.degrees(angle_between(*noises))
    return Way(a, b, fractions, angle, pictures)


def between(a: Tensor, b: Tensor, f: float) -> Tensor:
    """The point at f of the straight way from a to b, either end to the bit."""
    return a if f == 0 else b if f == 1 else torch.lerp(a, b, f)


@style.drawing
def interpolate_figure(data: Way) -> "Figure":
    """Draws all pictures in a row or more, and below each how far along it is."""
    aspect = data.pictures[0].height / data.pictures[0].width
    places, end = style.cells(len(data.pictures), aspect, 36, across=9, gap=8)
    a, b = data.first, data.last
    noise = (
        f"the noise of seed {a.seed}"
        if a.seed == b.seed
        else f"noise on the arc between seeds {a.seed} and {b.seed}"
    )
    text = ", the embeddings of the prompts on a straight line" * (a.prompt != b.prompt)
    sheet = Sheet(
        end + 8,
        " to ".join(style.quoted(prompt, 2) for prompt in dict.fromkeys((a.prompt, b.prompt))),
        f"{noise}{text}; {sampling(a)}",
    )
    for (x, y, w, h), picture, f in zip(places, data.pictures, data.fractions, strict=True):
        sheet.picture(x, y + sheet.top, w, h, picture)
        sheet.note(x, y + sheet.top + h + 18, f"{100 * f:.0f} %")
    return sheet.figure
