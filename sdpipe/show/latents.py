"""What a VAE encodes: the latents of an image by channel, and the image decoded from them."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from sdpipe.io.pixels import compare_pixels
from sdpipe.latents import latents_to_pil, pil_to_latents
from sdpipe.show import style
from sdpipe.show.inputs import crop_to_size, resolve_one
from sdpipe.show.style import CROSS, MARGIN, WIDTH, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image, its latents (C, h, w), and the image decoded from them.

    Latents are multiplied by the VAE's scaling factor, as everywhere in sdpipe.
    """

    image: Image.Image
    latents: Tensor
    decoded: Image.Image

    @property
    def difference(self) -> np.ndarray[Any, Any]:
        """The decoded image minus the image, (H, W, 3), -255 to 255."""
        levels = (np.asarray(image, dtype=np.int16) for image in (self.decoded, self.image))
        decoded, image = levels
        return decoded - image

    @property
    def compression(self) -> float:
        """The number of pixel values for each latent: 48 with v1-4's VAE."""
        return 3 * self.image.width * self.image.height / self.latents.numel()

    @property
    def psnr(self) -> float:
        """The peak signal-to-noise ratio of the decoded image in dB; infinite if it is equal."""
        psnr = compare_pixels(self.image, self.decoded).psnr
        return math.inf if psnr is None else psnr

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON types."""
        channels = self.latents.flatten(1)  # (C, hw)
        return {
            "width": self.image.width,
            "height": self.image.height,
            "latents": list(self.latents.shape),
            "compression": self.compression,
            "psnr": self.psnr,
            "largest_difference": int(np.abs(self.difference).max()),
            "channels": [
                {"mean": float(c.mean()), "std": float(c.std()), "largest": float(c.abs().max())}
                for c in channels
            ],
        }


def latents_data(pipe: "Pipeline", image: Image.Image, *, dim: int | None = None) -> EncodedImage:
    """Encodes the middle of an image, at the model's size or at `dim`, and decodes it again.

    Raises:
        UsageError: dim breaks its rule.
    """
    parts = pipe.components
    image = crop_to_size(image, resolve_one(pipe, dim=dim))
    z = pil_to_latents(parts.vae, image)  # (1, C, h, w)
    return EncodedImage(image, z[0].cpu(), latents_to_pil(parts.vae, z)[0])


@style.with_style
def latents_figure(data: EncodedImage) -> "Figure":
    """Draws the image, its latents by channel, the decoded image, and the difference."""
    channels, height, width = data.latents.shape
    aspect = data.image.height / data.image.width
    upper, end_of_upper = style.grid_cells(4, aspect, 100)
    lower, end_of_lower = style.grid_cells(channels, aspect, 52)
    numbers = data.image.width * data.image.height * 3
    sheet = Sheet(
        end_of_upper + end_of_lower + 76,
        "An image, its latents, and the image decoded from them",
        f"3 {CROSS} {data.image.height} {CROSS} {data.image.width} = {numbers:,} numbers "
        f"become {channels} {CROSS} {height} {CROSS} {width} = {data.latents.numel():,}",
    )
    upper = [(x, y + sheet.top, w, h) for x, y, w, h in upper]
    off = np.abs(data.difference).max(axis=2)  # the largest of three colours, (H, W)
    captions = (
        ("the image", f"{data.image.width} {CROSS} {data.image.height} pixels"),
        (f"{data.compression:g} times fewer numbers", "the areas are to scale"),
        ("decoded from the latents", f"PSNR {data.psnr:.1f} dB"),
        ("the difference", f"at most {off.max()} of 255 levels"),
    )
    for (x, y, _, h), (caption, note) in zip(upper, captions, strict=True):
        sheet.text(x, y + h + 22, caption)
        sheet.note(x, y + h + 40, note)
    sheet.image(*upper[0], data.image)
    _draw_areas(sheet, *upper[1], data.compression)
    sheet.image(*upper[2], data.decoded)
    limits = {"vmin": 0, "vmax": off.max() or 1}
    axes = sheet.image(*upper[3], off, cmap=style.SEQUENTIAL, **limits)
    x, y, w, h = upper[3]
    sheet.scale(x, y + h + 52, w, axes, height=6)

    limit = float(data.latents.abs().max()) or 1.0
    for i, (x, y, w, h) in enumerate(lower):
        y += sheet.top + end_of_upper
        looks = {"cmap": style.DIVERGING, "vmin": -limit, "vmax": limit}
        channel = data.latents[i].float()
        axes = sheet.image(x, y, w, h, channel.numpy(), **looks)
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
    """Draws the number of pixel values as an area, and inside it that of the latents."""
    canvas = sheet.canvas()
    style.draw_bar(canvas, x, y, width, height, style.TINTS[0])
    w, h = width / compression**0.5, height / compression**0.5
    style.draw_bar(canvas, x + (width - w) / 2, y + (height - h) / 2, w, h, style.BLUE)
