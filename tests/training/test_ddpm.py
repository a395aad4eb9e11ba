"""The denoising loss, against diffusers and closed forms."""

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler
from support.captions import NumbersEncoder
from torch import nn

from sdpipe.training import ddpm
from sdpipe.training.recipe_file import load_recipe

TIMESTEPS = torch.tensor([0, 10, 200, 500, 900, 999])
TOKENS = torch.zeros(6, 3, dtype=torch.long)


def recipe(prediction_type):
    return dataclasses.replace(load_recipe().unet, prediction_type=prediction_type)


def latents():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((6, 4, 2, 2), generator=generator) for _ in range(2)]


class KnownOutput(nn.Module):
    """A U-Net that always returns the same output, and remembers its input."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x_t, t, text):
        self.x_t = x_t
        return type("Output", (), {"sample": self.output})


def test_alpha_bar_is_that_of_diffusers():
    ours = ddpm.cumulative_alpha(0.00085, 0.012, 1000)
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.allclose(ours, theirs.alphas_cumprod, rtol=1e-5)
    assert ours[0] == pytest.approx(1 - 0.00085)


def test_a_perfect_prediction_of_the_noise_has_no_loss():
    x_0, eps = latents()
    alpha_bar = ddpm.cumulative_alpha(0.00085, 0.012, 1000)[TIMESTEPS]
    unet = KnownOutput(eps)
    loss = ddpm.DenoisingLoss(unet, NumbersEncoder(), recipe("epsilon"))
    assert loss(x_0, TOKENS, TIMESTEPS, eps) == 0
    a = alpha_bar.view(-1, 1, 1, 1)
    assert torch.allclose(unet.x_t, a.sqrt() * x_0 + (1 - a).sqrt() * eps)
    off = ddpm.DenoisingLoss(KnownOutput(eps + 1), NumbersEncoder(), recipe("epsilon"))
    expected = (1 / alpha_bar).clamp(max=60).mean().item()
    assert off(x_0, TOKENS, TIMESTEPS, eps).item() == pytest.approx(expected, rel=1e-4)


def test_v_is_that_of_diffusers():
    x_0, eps = latents()
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    v = theirs.get_velocity(x_0, eps, TIMESTEPS)
    for output, expected in ((v, 0), (v + 1, 1)):
        loss = ddpm.DenoisingLoss(KnownOutput(output), NumbersEncoder(), recipe("v_prediction"))
        value = loss(x_0, TOKENS, TIMESTEPS, eps).item()
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-10)


def test_a_smaller_exponent_draws_more_noisy_timesteps():
    def shares_below(exponent):
        t = ddpm.draw_timesteps(50_000, 1000, exponent, torch.Generator().manual_seed(0))
        assert t.dtype == torch.long
        assert t.min() >= 0
        assert t.max() == 999
        return [(t < limit).float().mean().item() for limit in (250, 500, 750)]

    assert shares_below(1.0) == pytest.approx([0.25, 0.5, 0.75], abs=0.01)
    # P(T u^e < s T) = P(u < s^(1 / e))
    assert shares_below(0.5) == pytest.approx([0.25**2, 0.5**2, 0.75**2], abs=0.01)


def test_the_weight_turns_the_error_of_the_noise_into_that_of_v():
    generator = torch.Generator().manual_seed(0)
    x_0, eps, wrong = (torch.randn((1, 4, 8, 8), generator=generator) for _ in range(3))
    for a in (0.9, 0.5, 0.05):
        alpha = torch.tensor(a)
        x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * eps
        implied = (x_t - (1 - alpha).sqrt() * wrong) / alpha.sqrt()
        v = alpha.sqrt() * eps - (1 - alpha).sqrt() * x_0
        v_wrong = alpha.sqrt() * wrong - (1 - alpha).sqrt() * implied
        error_of_v, error_of_eps = (v - v_wrong).square().mean(), (eps - wrong).square().mean()
        weight = ddpm.loss_weight(alpha, maximum=1e9)
        assert torch.allclose(error_of_v, weight * error_of_eps, rtol=1e-4)
    assert ddpm.loss_weight(torch.tensor(1e-4), maximum=60.0) == 60
