"""What a VAE makes of a picture: the channels of its latents, and what comes back of them."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from sdpipe.latents import latents_to_pil, pil_to_latents
from sdpipe.show import style
from sdpipe.show.stages import brought_to_size, settle
from sdpipe.show.style import CROSS, MARGIN, WIDTH, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class Encoded:
    """A picture, its latents (C, h, w), and the picture that they decode to.

    Latents are multiplied by the VAE's scaling factor, as everywhere in sdpipe.
    """

    picture: Image.Image
    latents: Tensor
    decoded: Image.Image

    @property
    def difference(self) -> np.ndarray[Any, Any]:
        """How far each level of each colour is off, decoded minus picture, (H, W, 3), -255..255."""
        levels = (np.asarray(image, dtype=np.int16) for image in (self.decoded, self.picture))
        decoded, picture = levels
        return decoded - picture

    @property
    def compression(self) -> float:
        """How many numbers of the picture one latent stands for: 48 with v1-4's VAE."""
        return 3 * self.picture.width * self.picture.height / self.latents.numel()

    @property
    def psnr(self) -> float:
        """The peak signal-to-noise ratio of what comes back, in dB, from the 8-bit levels.

        10 log10(255^2 / mean squared error); infinite where every level is the same.
        """
        error = float(np.mean(self.difference.astype(np.float64) ** 2))
        return 10 * math.log10(255**2 / error) if error else math.inf

    def numbers(self) -> dict[str, Any]:
        """What can be said in JSON."""
        channels = self.latents.flatten(1)  # (C, hw)
        return {
            "width": self.picture.width,
            "height": self.picture.height,
            "latents": list(self.latents.shape),
            "compression": self.compression,
            "psnr": self.psnr,
            "largest_difference": int(np.abs(self.difference).max()),
            "channels": [
                {"mean": float(c.mean()), "std": float(c.std()), "largest": float(c.abs().max())}
                for c in channels
            ],
        }


def latents_data(pipe: "Pipeline", picture: Image.Image, *, dim: int | None = None) -> Encoded:
    """Encodes the middle of a picture, at the model's size or at `dim`, and decodes it again.

    Raises:
        UsageError: dim breaks its rule.
    """
    parts = pipe.components
    picture = brought_to_size(picture, settle(pipe, dim=dim))
    z = pil_to_latents(parts.vae, picture)  # (1, C, h, w)
    return Encoded(picture, z[0].cpu(), latents_to_pil(parts.vae, z)[0])


@style.drawing
def latents_figure(data: Encoded) -> "Figure":
    """Draws the picture, its latents by channel, what they decode to, and the difference."""
    channels, height, width = data.latents.shape
    aspect = data.picture.height / data.picture.width
    upper, end_of_upper = style.cells(4, aspect, 100)
    lower, end_of_lower = style.cells(channels, aspect, 52)
    numbers = data.picture.width * data.picture.height * 3
    sheet = Sheet(
        end_of_upper + end_of_lower + 76,
        "A picture, its latents, and what comes back",
        f"3 {CROSS} {data.picture.height} {CROSS} {data.picture.width} = {numbers:,} numbers "
        f"become {channels} {CROSS} {height} {CROSS} {width} = {data.latents.numel():,}",
    )
    upper = [(x, y + sheet.top, w, h) for x, y, w, h in upper]
    off = np.abs(data.difference).max(axis=2)  # the worst of three colours, (H, W)
    captions = (
        ("the picture", f"{data.picture.width} {CROSS} {data.picture.height} pixels"),
        (f"{data.compression:g} times fewer numbers", "the areas are to scale"),
        ("decoded from the latents", f"PSNR {data.psnr:.1f} dB"),
        ("the difference", f"at most {off.max()} of 255 levels"),
    )
    for (x, y, _, h), (caption, note) in zip(upper, captions, strict=True):
        sheet.text(x, y + h + 22, caption)
        sheet.note(x, y + h + 40, note)
    sheet.picture(*upper[0], data.picture)
    _draw_areas(sheet, *upper[1], data.compression)
    sheet.picture(*upper[2], data.decoded)
    limits = {"vmin": 0, "vmax": off.max() or 1}
    axes = sheet.picture(*upper[3], off, cmap=style.SEQUENTIAL, **limits)
    x, y, w, h = upper[3]
    sheet.scale(x, y + h + 52, w, axes, height=6)

    limit = float(data.latents.abs().max()) or 1.0
    for i, (x, y, w, h) in enumerate(lower):
        y += sheet.top + end_of_upper
        looks = {"cmap": style.DIVERGING, "vmin": -limit, "vmax": limit}
        channel = data.latents[i].float()
        axes = sheet.picture(x, y, w, h, channel.numpy(), **looks)
        sheet.text(x, y + h + 20, f"channel {i + 1}")
        note = f"mean {float(channel.mean()):.2f}, std {float(channel.std()):.2f}"
        sheet.note(x, y + h + 37, note.replace("-", "\N{MINUS SIGN}"))
    end = sheet.top + end_of_upper + end_of_lower
    sheet.note(MARGIN, end + 12, "value of each latent, with the VAE's scaling factor")
    sheet.scale(MARGIN, end + 22, WIDTH - 2 * MARGIN, axes)
    return sheet.figure


def _draw_areas(
    sheet: Sheet, x: float, y: float, width: float, height: float, compression: float
) -> None:
    """The numbers of a picture as an area, and those of its latents in the middle of it."""
    canvas = sheet.canvas()
    style.bar(canvas, x, y, width, height, style.TINTS[0])
    w, h = width / compression**0.5, height / compression**0.5
    style.bar(canvas, x + (width - w) / 2, y + (height - h) / 2, w, h, style.BLUE)
