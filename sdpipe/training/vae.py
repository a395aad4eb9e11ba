"""The VAE's training: images to latents and back, by maximising the ELBO.

    ELBO = E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z))        Kingma and Welling (2014), equation 3

The loss is its negative: the error of the reconstruction of x from z, and the divergence of the
encoder's posterior q(z|x), a Gaussian, from the prior p(z) = N(0, I).
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from sdpipe.training.recipe import Vae


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats, elementwise.

    Kingma and Welling (2014), appendix B: (mean^2 + sigma^2 - 1 - log sigma^2) / 2.
    """
    return (mean**2 + log_variance.exp() - 1 - log_variance) / 2


def reconstruction_error(x: Tensor, y: Tensor, edge_weight: float, mse_weight: float) -> Tensor:
    """-log p(x|z) of a Laplace distribution around y, up to constants: the mean of |x - y|.

    edge_weight: weight of the same error of the differences between neighbouring pixels, which
        keeps outlines sharp.
    mse_weight: weight of the squared error, which counts large errors more.
    x and y are (B, 3, H, W).
    """
    error = (x - y).abs().mean() + mse_weight * (x - y).square().mean()
    for axis in (2, 3):
        error = error + edge_weight * (x.diff(dim=axis) - y.diff(dim=axis)).abs().mean()
    return error


class NegativeElbo(nn.Module):
    """The loss of images x (B, 3, H, W) in [-1, 1]: reconstruction plus weighted divergence.

    z = mean + sigma * eps with standard normal eps, the reparametrisation of Kingma and Welling
    (2014), section 2.4. The weight of the divergence is the beta of a beta-VAE.
    """

    def __init__(self, vae: AutoencoderKL, recipe: Vae) -> None:
        super().__init__()
        self.vae, self.recipe = vae, recipe

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        """`eps` has the latents' shape (B, C, h, w)."""
        posterior = self.vae.encode(x).latent_dist
        divergence = kl_divergence(posterior.mean.float(), posterior.logvar.float()).mean()
        y = self.vae.decode(posterior.mean + posterior.std * eps).sample.float()
        error = reconstruction_error(x, y, self.recipe.edge_weight, self.recipe.mse_weight)
        return error + self.recipe.kl_weight * divergence


class DecoderLoss(nn.Module):
    """The loss of the decoder alone: the reconstruction error from the mode of q(z|x).

    The encoder is frozen, so the latents keep their meaning.
    """

    def __init__(self, vae: AutoencoderKL, recipe: Vae) -> None:
        super().__init__()
        self.vae, self.recipe = vae, recipe

    def forward(self, x: Tensor) -> Tensor:
        """The loss of images (B, 3, H, W) in [-1, 1]."""
        with torch.no_grad():
            z = self.vae.encode(x).latent_dist.mode()
        y = self.vae.decode(z).sample.float()
        return reconstruction_error(x, y, self.recipe.edge_weight, self.recipe.decoder_mse_weight)
