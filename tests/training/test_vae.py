"""The losses of the VAE, against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Laplace, Normal, kl_divergence

from sdpipe.training import vae
from sdpipe.training.recipe import load_recipe


def test_divergence_is_that_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn((5, 4, 3, 3), generator=generator) for _ in range(2))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    assert torch.allclose(vae.kl_divergence(mean, log_variance), expected, atol=1e-6)
    zero = torch.zeros(1)
    assert vae.kl_divergence(zero, zero) == 0


def test_reconstruction_is_a_laplace_likelihood_up_to_a_constant():
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    likelihood = Laplace(y, 1.0).log_prob(x).mean()
    constant = torch.tensor(2.0).log()
    plain = vae.reconstruction_error(x, y, edges=0.0, square=0.0)
    assert torch.allclose(plain, -likelihood - constant)
    assert vae.reconstruction_error(x, x, edges=0.5, square=1.0) == 0
    # The square is that of a normal distribution, but for the half.
    gaussian = -2 * Normal(y, 1.0).log_prob(x).mean() - math.log(2 * math.pi)
    both = vae.reconstruction_error(x, y, edges=0.0, square=3.0)
    assert torch.allclose(both, plain + 3 * gaussian, atol=1e-5)
    # A constant offset has no edges, so only the first term sees it.
    offset = vae.reconstruction_error(x, x + 0.25, edges=10.0, square=0.0)
    assert offset == pytest.approx(0.25, abs=1e-4)


def test_the_decoder_learns_alone_what_the_encoder_says():
    recipe = load_recipe().vae
    autoencoder = vae.build_vae(recipe, 16)
    x = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    loss = vae.DecodingError(autoencoder, recipe)
    value = loss(x)
    z = autoencoder.encode(x).latent_dist.mean
    y = autoencoder.decode(z).sample
    expected = vae.reconstruction_error(x, y, recipe.edges, recipe.decoder_square)
    assert torch.allclose(value, expected, rtol=1e-5)
    value.backward()
    assert all(p.grad is None for p in autoencoder.encoder.parameters())
    assert all(p.grad is not None for p in autoencoder.decoder.parameters())
