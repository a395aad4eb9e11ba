"""Interpolation between two images: between their noises and between their prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from sdpipe.batches import warn_about, warn_unused_embeddings
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
from sdpipe.schedule import schedule_for
from sdpipe.show import style
from sdpipe.show.checks import check_interpolation
from sdpipe.show.inputs import describe_sampling, resolve_one
from sdpipe.show.style import Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline
    from sdpipe.settings import ResolvedSettings

FRAMES = 9


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Images between two.

    first, last: the settings of the images at both ends.
    fractions: the position of each image, 0 to 1.
    angle: between the two noises, in degrees; 0 for the same noise.
    """

    first: "ResolvedSettings"
    last: "ResolvedSettings"
    fractions: list[float]
    angle: float
    images: list[Image.Image]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON types."""
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
) -> Interpolation:
    """Draws the images between two: noises with `slerp`, prompt embeddings on a straight line.

    seeds: one for each end, or one for both, which keeps the noise; empty draws one for both. The
        other settings are those of `Pipeline.generate`.
    on_frame: called with the number of images that are done, and of all.

    The images at both ends are those of `Pipeline.generate`, bit for bit, unless one prompt has
    more chunks than the other, which is then padded.

    Raises:
        UsageError: a value breaks its rule.
    """
    parts = pipe.components
    a = resolve_one(pipe, first, seed=seeds[0] if seeds else None, **settings)
    b = resolve_one(pipe, last, seed=seeds[-1] if seeds else a.seed, **settings)
    check_interpolation(frames, seeds, a.scheduler)
    warn_about(parts, [a.prompt, b.prompt, a.negative_prompt])
    warn_unused_embeddings(parts, [a, b])
    text = encode_prompts(
        parts.tokenizer,
        parts.text_encoder,
        [a.prompt, b.prompt],
        [a.negative_prompt],
        steps=a.steps,
        clip_skip=a.clip_skip,
    )
    factor = vae_factor(parts.vae)
    shape = (parts.unet.config.in_channels, a.height // factor, a.width // factor)
    noises = draw_noise(make_generators([a.seed, b.seed], a.rng), shape).split(1)
    fractions = [i / (frames - 1) for i in range(frames)]
    guidance = Guidance(a.g, a.guidance_rescale, a.guidance_interval)
    images = []
    for f in fractions:
        schedule = schedule_for(a, parts.scheduler_config, parts.device)
        x_t = slerp(noises[0], noises[1], f).to(parts.device) * schedule.init_noise_sigma
        cond = [lerp(z[:1], z[1:], f) for z in text.cond]
        generators = make_generators([a.seed], a.rng)
        draw_noise(generators, shape)  # the noise of later steps comes after it
        for step in denoise(parts.unet, schedule, x_t, cond, text.uncond, guidance, generators):
            x_t = step.latents
        images += latents_to_pil(parts.vae, x_t)
        if on_frame is not None:
            on_frame(len(images), frames)
    angle = math.degrees(angle_between(*noises))
    return Interpolation(a, b, fractions, angle, images)


def lerp(a: Tensor, b: Tensor, f: float) -> Tensor:
    """Linear interpolation that returns a and b themselves at f = 0 and 1."""
    return a if f == 0 else b if f == 1 else torch.lerp(a, b, f)


@style.with_style
def interpolate_figure(data: Interpolation) -> "Figure":
    """Draws all images in rows, with the position of each below it."""
    aspect = data.images[0].height / data.images[0].width
    places, end = style.grid_cells(len(data.images), aspect, 36, across=9, gap=8)
    a, b = data.first, data.last
    noise = (
        f"the noise of seed {a.seed}"
        if a.seed == b.seed
        else f"noise on the arc between seeds {a.seed} and {b.seed}"
    )
    text = ", the embeddings of the prompts on a straight line" * (a.prompt != b.prompt)
    sheet = Sheet(
        end + 8,
        " to ".join(style.quote(prompt, 2) for prompt in dict.fromkeys((a.prompt, b.prompt))),
        f"{noise}{text}; {describe_sampling(a)}",
    )
    for (x, y, w, h), image, f in zip(places, data.images, data.fractions, strict=True):
        sheet.image(x, y + sheet.top, w, h, image)
        sheet.note(x, y + sheet.top + h + 18, f"{100 * f:.0f} %")
    return sheet.figure
