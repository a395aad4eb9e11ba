"""The losses of the VAE, against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Laplace, Normal, kl_divergence

from sdpipe.training import vae
from sdpipe.training.networks import build_vae
from sdpipe.training.recipe_file import load_recipe


def test_the_divergence_is_that_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn((5, 4, 3, 3), generator=generator) for _ in range(2))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    assert torch.allclose(vae.kl_divergence(mean, log_variance), expected, atol=1e-6)
    zero = torch.zeros(1)
    assert vae.kl_divergence(zero, zero) == 0


def test_the_reconstruction_error_is_a_laplace_likelihood_up_to_a_constant():
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    likelihood = Laplace(y, 1.0).log_prob(x).mean()
    constant = torch.tensor(2.0).log()
    plain = vae.reconstruction_error(x, y, edge_weight=0.0, mse_weight=0.0)
    assert torch.allclose(plain, -likelihood - constant)
    assert vae.reconstruction_error(x, x, edge_weight=0.5, mse_weight=1.0) == 0
    # The squared error is that of a normal distribution, times two.
    gaussian = -2 * Normal(y, 1.0).log_prob(x).mean() - math.log(2 * math.pi)
    both = vae.reconstruction_error(x, y, edge_weight=0.0, mse_weight=3.0)
    assert torch.allclose(both, plain + 3 * gaussian, atol=1e-5)
    # A constant offset has no edges, so only the first term sees it.
    offset = vae.reconstruction_error(x, x + 0.25, edge_weight=10.0, mse_weight=0.0)
    assert offset == pytest.approx(0.25, abs=1e-4)


def test_the_decoders_loss_leaves_the_encoder_alone():
    recipe = load_recipe().vae
    autoencoder = build_vae(recipe, 16)
    x = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    loss = vae.DecoderLoss(autoencoder, recipe)
    value = loss(x)
    z = autoencoder.encode(x).latent_dist.mean
    y = autoencoder.decode(z).sample
    expected = vae.reconstruction_error(x, y, recipe.edge_weight, recipe.decoder_mse_weight)
    assert torch.allclose(value, expected, rtol=1e-5)
    value.backward()
    assert all(p.grad is None for p in autoencoder.encoder.parameters())
    assert all(p.grad is not None for p in autoencoder.decoder.parameters())
