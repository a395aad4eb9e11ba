import math

import pytest
import torch
from PIL import Image
from support.drawn import assert_legible
from support.errors import raises

from sdpipe.errors import UsageError
from sdpipe.latents import posterior
from sdpipe.show.bound import (
    bound_data,
    bound_figure,
    gaussian_kl,
    loss_weight,
    variational_bound,
)

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHA_BAR = (1 - BETAS).cumprod(0).tolist()


def test_the_divergence_is_that_of_torch():
    a, b = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normals = [torch.distributions.Normal(m, v**0.5) for m, v in ((a, 0.3), (b, 0.7))]
    expected = torch.distributions.kl_divergence(*normals).sum()
    assert gaussian_kl(a, 0.3, b, 0.7) == pytest.approx(float(expected))


def test_the_posterior_is_that_of_bayes_rule_by_simulation():
    """Two steps of the forward process, many times; the earlier one regressed on the later."""
    random = torch.Generator().manual_seed(1)
    x_0, before, after = 0.7, 0.6, 0.45  # alpha_bar of t - 1 and of t
    eps, more = torch.randn(2, 400_000, dtype=torch.float64, generator=random)
    earlier = before**0.5 * x_0 + (1 - before) ** 0.5 * eps
    alpha = after / before
    later = alpha**0.5 * earlier + (1 - alpha) ** 0.5 * more
    slope = torch.cov(torch.stack([earlier, later]))[0, 1] / later.var()
    at = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    simulated = earlier.mean() + slope * (at - later.mean())
    mean, variance = posterior(torch.full_like(at, x_0), at, after, before)
    assert torch.allclose(mean, simulated, atol=5e-3)
    assert variance == pytest.approx(float(earlier.var() - slope**2 * later.var()), rel=1e-2)


@pytest.mark.parametrize(("spread", "gap"), [(0.5, 0.03), (1.0, 0.01), (2.0, 0.03)])
def test_the_bound_of_an_exact_model_is_the_entropy_of_a_gaussian(spread, gap):
    """x_0 ~ N(0, spread^2 I); at spread 1 the variances are exact, too, elsewhere it is a bound."""
    random = torch.Generator().manual_seed(2)
    x_0 = spread * torch.randn(1, 4, 64, 64, dtype=torch.float64, generator=random)

    def exact(x_t, t):  # E[x_0 | x_t]
        a = ALPHA_BAR[t]
        return a**0.5 * spread**2 / (a * spread**2 + 1 - a) * x_t

    prior, last, terms = variational_bound(exact, x_0, ALPHA_BAR, range(1, 1000), random)
    # The mean square of this very sample is not quite that of the distribution.
    entropy = 0.5 * (math.log(2 * math.pi * spread**2) + float((x_0 / spread).square().mean()))
    assert entropy == pytest.approx(0.5 * math.log(2 * math.pi * math.e * spread**2), abs=0.02)
    bound = (prior + last + sum(terms)) / x_0.numel()
    assert -0.01 < bound - entropy < gap


def test_each_term_is_the_weighted_error_of_the_noise_and_a_constant():
    random = torch.Generator().manual_seed(3)
    x_0, wrong = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64, generator=random)
    times = [1, 10, 500, 999]
    seen = []

    def predict(x_t, t):
        if t:
            a = ALPHA_BAR[t]
            eps, eps_seen = ((x_t - a**0.5 * x) / (1 - a) ** 0.5 for x in (x_0, wrong))
            seen.append(float((eps - eps_seen).square().sum()))
        return wrong

    _, _, terms = variational_bound(predict, x_0, ALPHA_BAR, times, random)
    for t, error, term in zip(times, seen, terms, strict=True):
        ratio = (1 - ALPHA_BAR[t - 1]) / (1 - ALPHA_BAR[t])  # of the posterior's variance to beta_t
        constant = x_0.numel() / 2 * (ratio - 1 - math.log(ratio))
        assert term == pytest.approx(loss_weight(ALPHA_BAR, t) * error + constant, rel=1e-4)


def test_the_built_in_model_knows_its_own_image_better_than_another(emoji):
    image = emoji.generate("red apple", seed=42, steps=8).images[0]
    noise = Image.effect_noise((128, 128), 80).convert("RGB")
    own, other = (bound_data(emoji, i, "red apple", 8, seed=0) for i in (image, noise))
    assert sum(own.shares) == 999
    assert own.nats < other.nats
    assert own.to_dict()["bits_per_dim"] == pytest.approx(own.nats / math.log(2) / own.size)
    assert_legible(bound_figure(own))


@pytest.mark.parametrize("points", [0, 1000])
def test_there_are_999_timesteps_above_0(emoji, points):
    with raises(UsageError, value=f"points={points}", rule="out of range"):
        bound_data(emoji, Image.new("RGB", (128, 128)), points=points)
