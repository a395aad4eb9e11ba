"""Previews of latents: a linear map fitted to a VAE, and how far off it is."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sdpipe.io.pixels import compare_pixels
from sdpipe.latents import latents_to_pil, pil_to_latents
from sdpipe.show.preview import fit_preview, synthetic_images

MATRIX = torch.tensor([[0.3, -0.1, 0.2], [0.0, 0.4, -0.2], [0.1, 0.1, 0.5], [0.1, -0.05, 0.0]])


class LinearVAE:
    """A VAE that is linear: three channels, two pixels a latent, decoded by `MATRIX`."""

    config = SimpleNamespace(block_out_channels=(1, 1), scaling_factor=0.5)
    device, dtype = torch.device("cpu"), torch.float32

    def encode(self, x):
        colours = F.avg_pool2d(x, 2).movedim(1, -1) - MATRIX[-1]
        z = torch.linalg.solve(MATRIX[:3].T, colours.unsqueeze(-1)).squeeze(-1).movedim(-1, 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: z))

    def decode(self, z):
        colours = (z.movedim(1, -1) @ MATRIX[:3] + MATRIX[-1]).movedim(-1, 1)
        return SimpleNamespace(sample=F.interpolate(colours, scale_factor=2))


@pytest.fixture(scope="module")
def fitted(emoji):
    return fit_preview(emoji.components)


def test_of_a_linear_vae_the_map_is_found(emoji):
    class Parts:
        vae = LinearVAE()
        on_device = staticmethod(emoji.components.on_device)

    preview = fit_preview(Parts())
    scaled = torch.cat([MATRIX[:3] / 0.5, MATRIX[3:]])  # latents are multiplied by the factor
    assert torch.allclose(preview.matrix, scaled, atol=0.01)
    assert preview.error < 1  # the rounding of eight bits


def test_it_is_nearer_to_the_decoded_image_than_its_mean_colour(emoji, fitted):
    image = emoji.generate("red apple", seed=42, steps=8).images[0]
    z = pil_to_latents(emoji.components.vae, image)
    decoded = latents_to_pil(emoji.components.vae, z)
    preview = fitted.draw(z)[0]
    assert preview.size == (z.shape[3], z.shape[2])
    small = decoded[0].resize(preview.size, Image.Resampling.BOX)
    mean = Image.new(
        "RGB", preview.size, small.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    )
    ours, plain = (compare_pixels(small, other).psnr for other in (preview, mean))
    assert ours > plain + 3


def test_the_error_is_that_of_the_images_held_out(emoji, fitted):
    """The same images, encoded and decoded here, give the number that the map tells."""
    vae = emoji.components.vae
    offs = []
    for image in synthetic_images(12, 128)[9:]:
        z = pil_to_latents(vae, image)
        decoded = latents_to_pil(vae, z)[0].resize((16, 16), Image.Resampling.BOX)
        offs.append(fitted.measure(z, [decoded.resize((128, 128), Image.Resampling.NEAREST)]))
    rms = (sum(off**2 for off in offs) / len(offs)) ** 0.5
    assert fitted.error == pytest.approx(rms, rel=0.02)


def test_the_images_it_is_fitted_to_are_the_same_every_time():
    assert [a.tobytes() for a in synthetic_images(2, 32)] == [
        a.tobytes() for a in synthetic_images(2, 32)
    ]
