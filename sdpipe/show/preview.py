"""Previews of latents without the VAE: a linear map of the latent channels to colours.

    preview = fit_preview(pipe.components)
    image = preview.draw(step.x0)[0]  # one pixel for each latent

A decode costs as much as several steps; this costs nothing, and says how far off it is.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdpipe.components import Components
from sdpipe.latents import latents_to_pil, pil_to_latents, to_pil, to_tensor, vae_factor

SIDE = 16  # latents on each side of the images that the map is fitted to
COUNT, HELD_OUT = 9, 3
SEED = 20


@dataclass(frozen=True, eq=False)
class LatentPreview:
    """A linear map from latents to colours, for one VAE.

    matrix: (C + 1, 3), the last row the constant; from latents to [-1, 1].
    error: the root mean square of its error on images that were held out, in levels of 255: the
        colour of each latent against the mean colour of its pixels in the decoded image.
    """

    matrix: Tensor
    error: float

    def colours(self, latents: Tensor) -> Tensor:
        """The colours of latents (B, C, h, w): (B, 3, h, w), near [-1, 1]."""
        z = latents.detach().float().cpu().movedim(1, -1)  # (B, h, w, C)
        return (z @ self.matrix[:-1] + self.matrix[-1]).movedim(-1, 1)

    def draw(self, latents: Tensor) -> list[Image.Image]:
        """Latents (B, C, h, w) as B images of w x h pixels."""
        return [to_pil(x) for x in self.colours(latents)]

    def measure(self, latents: Tensor, decoded: list[Image.Image]) -> float:
        """The root mean square by which the map is off the decoded images, in levels of 255."""
        off = self.colours(latents).clamp(-1, 1) - _shrink(decoded, latents)
        return float(off.square().mean().sqrt() * 127.5)


def fit_preview(parts: Components) -> LatentPreview:
    """Fits the map to a model's VAE by least squares, on synthetic images that are decoded."""
    side = SIDE * vae_factor(parts.vae)
    images = synthetic_images(COUNT + HELD_OUT, side)
    with parts.on_device(parts.vae):
        z = torch.cat([pil_to_latents(parts.vae, image) for image in images])  # (B, C, h, w)
        decoded = [latents_to_pil(parts.vae, one)[0] for one in z.split(1)]
    z = z.cpu()
    inputs = z[:COUNT].movedim(1, -1).flatten(0, 2)  # (Bhw, C)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    targets = _shrink(decoded[:COUNT], z).movedim(1, -1).flatten(0, 2)  # (Bhw, 3)
    matrix = torch.linalg.lstsq(inputs.double(), targets.double()).solution.float()
    held_out = LatentPreview(matrix, 0.0).measure(z[COUNT:], decoded[COUNT:])
    return LatentPreview(matrix, held_out)


def synthetic_images(count: int, side: int) -> list[Image.Image]:
    """Images that no model has seen: patches on a gradient, under noise of several scales.

    The same on every machine.
    """
    generator = torch.Generator().manual_seed(SEED)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    images = []
    for k in range(count):
        corners = random(1, 3, 2, 2) * 2 - 1
        x = F.interpolate(corners, (side, side), mode="bilinear", align_corners=True)[0]
        for _ in range(6):
            left, top = (random(2) * side * 0.8).int().tolist()
            width, height = ((0.1 + 0.5 * random(2)) * side).int().tolist()
            x[:, top : top + height, left : left + width] = (random(3, 1, 1) * 2 - 1) * 1.1
        cells = max(2, side >> (1 + k % 5))
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        x += 0.15 * F.interpolate(noise, (side, side), mode="nearest")[0]
        images.append(to_pil(x))
    return images


def _shrink(images: list[Image.Image], latents: Tensor) -> Tensor:
    """The mean colour of the pixels of each latent: (B, 3, h, w), in [-1, 1]."""
    x = torch.stack([to_tensor(image) for image in images])
    return F.adaptive_avg_pool2d(x, (latents.shape[2], latents.shape[3]))
