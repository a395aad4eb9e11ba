"""The autoencoder: pictures to latents and back, trained to maximise the ELBO.

    ELBO = E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z))        Kingma and Welling (2014), equation 3

The negative of it is the loss: how badly x comes back through z, and how far the encoder's
posterior q(z|x), a Gaussian, is from the prior p(z) = N(0, I).
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

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


def reconstruction_error(x: Tensor, y: Tensor, edges: float) -> Tensor:
    """-log p(x|z) of a Laplace distribution around y, up to constants: the mean |x - y|.

    `edges` adds that share of the same error of the pictures' differences between neighbouring
    pixels, which keeps outlines sharp. `x` and `y` are (B, 3, H, W).
    """
    error = (x - y).abs().mean()
    for axis in (2, 3):
        error = error + edges * (x.diff(dim=axis) - y.diff(dim=axis)).abs().mean()
    return error


def negative_elbo(
    vae: AutoencoderKL, x: Tensor, generator: torch.Generator, *, edges: float, kl: float
) -> Tensor:
    """The loss of pictures x (B, 3, H, W) in [-1, 1]: reconstruction plus weighted divergence.

    z is sampled once for each picture, z = mean + sigma * eps with eps from `generator`: the
    reparametrisation of Kingma and Welling (2014), section 2.4. `kl` is beta of a beta-VAE.
    """
    posterior = vae.encode(x).latent_dist
    divergence = kl_divergence(posterior.mean.float(), posterior.logvar.float()).mean()
    eps = torch.randn(posterior.mean.shape, generator=generator).to(x.device)
    y = vae.decode(posterior.mean + posterior.std * eps).sample.float()
    return reconstruction_error(x, y, edges) + kl * divergence
