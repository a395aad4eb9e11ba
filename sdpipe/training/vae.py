"""The autoencoder: pictures to latents and back, trained to maximise the ELBO.

    ELBO = E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z))        Kingma and Welling (2014), equation 3

The negative of it is the loss: how badly x comes back through z, and how far the encoder's
posterior q(z|x), a Gaussian, is from the prior p(z) = N(0, I).
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from sdpipe.training.recipe import Vae


def build_vae(recipe: Vae, size: int) -> AutoencoderKL:
    """An untrained AutoencoderKL for pictures of size x size pixels."""
    levels = len(recipe.block_out_channels)
    return AutoencoderKL(
        block_out_channels=tuple(recipe.block_out_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=recipe.layers_per_block,
        latent_channels=recipe.latent_channels,
        norm_num_groups=recipe.norm_num_groups,
        mid_block_add_attention=False,
        sample_size=size,
        scaling_factor=1.0,
    )


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats, each value for itself.

    Kingma and Welling (2014), appendix B: (mean^2 + sigma^2 - 1 - log sigma^2) / 2.
    """
    return (mean**2 + log_variance.exp() - 1 - log_variance) / 2


def reconstruction_error(x: Tensor, y: Tensor, edges: float, square: float) -> Tensor:
    """-log p(x|z) of a Laplace distribution around y, up to constants: the mean |x - y|.

    `edges` adds that share of the same error of the pictures' differences between neighbouring
    pixels, which keeps outlines sharp, `square` that share of the squared error, which weighs
    large errors more. `x` and `y` are (B, 3, H, W).
    """
    error = (x - y).abs().mean() + square * (x - y).square().mean()
    for axis in (2, 3):
        error = error + edges * (x.diff(dim=axis) - y.diff(dim=axis)).abs().mean()
    return error


class NegativeElbo(nn.Module):
    """The loss of pictures x (B, 3, H, W) in [-1, 1]: reconstruction plus weighted divergence.

    z = mean + sigma * eps with standard normal eps, the reparametrisation of Kingma and Welling
    (2014), section 2.4. The weight of the divergence is the beta of a beta-VAE.
    """

    def __init__(self, vae: AutoencoderKL, recipe: Vae) -> None:
        super().__init__()
        self.vae = vae
        self.recipe = recipe

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        """`eps` has the latents' shape (B, C, h, w)."""
        posterior = self.vae.encode(x).latent_dist
        divergence = kl_divergence(posterior.mean.float(), posterior.logvar.float()).mean()
        y = self.vae.decode(posterior.mean + posterior.std * eps).sample.float()
        error = reconstruction_error(x, y, self.recipe.edges, self.recipe.square)
        return error + self.recipe.kl * divergence


class DecodingError(nn.Module):
    """The loss of the decoder alone: how badly pictures come back from the mode of q(z|x).

    The encoder, and with it what the latents mean, stays as it is.
    """

    def __init__(self, vae: AutoencoderKL, recipe: Vae) -> None:
        super().__init__()
        self.vae = vae
        self.recipe = recipe

    def forward(self, x: Tensor) -> Tensor:
        """The loss of pictures (B, 3, H, W) in [-1, 1]."""
        with torch.no_grad():
            z = self.vae.encode(x).latent_dist.mode()
        y = self.vae.decode(z).sample.float()
        return reconstruction_error(x, y, self.recipe.edges, self.recipe.decoder_square)
