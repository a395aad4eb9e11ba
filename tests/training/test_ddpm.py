"""The loss of the U-Net, against diffusers and closed forms."""

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler
from support.captions import Numbers, other_words
from torch import nn

from sdpipe.training import ddpm
from sdpipe.training.recipe import load_recipe
from sdpipe.training.refinement.hard_negatives import Rivals


def test_alpha_bar_is_that_of_diffusers():
    ours = ddpm.cumulative_alpha(0.00085, 0.012, 1000)
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.allclose(ours, theirs.alphas_cumprod, rtol=1e-5)
    assert ours[0] == pytest.approx(1 - 0.00085)


class Knows(nn.Module):
    """A U-Net that is told the noise."""

    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def forward(self, x_t, t, text):
        self.seen = x_t
        return type("Output", (), {"sample": self.eps})


class Mute(nn.Module):
    """A text encoder with nothing to say."""

    def forward(self, tokens):
        return type("Output", (), {"last_hidden_state": torch.zeros(*tokens.shape, 5)})


def test_a_perfect_predictor_has_no_loss():
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn((6, 4, 2, 2), generator=generator) for _ in range(2))
    recipe = dataclasses.replace(load_recipe().unet, prediction_type="epsilon")
    alpha_bar = ddpm.cumulative_alpha(0.00085, 0.012, 1000)
    t, tokens = torch.tensor([0, 10, 200, 500, 900, 999]), torch.zeros(6, 3, dtype=torch.long)
    unet = Knows(eps)
    assert ddpm.DenoisingLoss(unet, Mute(), recipe)(x_0, tokens, t, eps) == 0
    a = alpha_bar[t].view(-1, 1, 1, 1)
    assert torch.allclose(unet.seen, a.sqrt() * x_0 + (1 - a).sqrt() * eps)
    off = ddpm.DenoisingLoss(Knows(eps + 1), Mute(), recipe)(x_0, tokens, t, eps)
    assert off == pytest.approx((1 / alpha_bar[t]).clamp(max=60).mean().item(), rel=1e-4)


def test_v_is_that_of_diffusers():
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn((6, 4, 2, 2), generator=generator) for _ in range(2))
    recipe = dataclasses.replace(load_recipe().unet, prediction_type="v_prediction")
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    t, tokens = torch.tensor([0, 10, 200, 500, 900, 999]), torch.zeros(6, 3, dtype=torch.long)
    v = theirs.get_velocity(x_0, eps, t)
    loss = ddpm.DenoisingLoss(Knows(v), Mute(), recipe)(x_0, tokens, t, eps)
    assert loss == pytest.approx(0, abs=1e-10)
    off = ddpm.DenoisingLoss(Knows(v + 1), Mute(), recipe)(x_0, tokens, t, eps)
    assert off == pytest.approx(1, rel=1e-5)


def test_both_losses_are_counted_together():
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn((2, 4, 2, 2), generator=generator) for _ in range(2))
    recipe = dataclasses.replace(load_recipe().unet, captions_weight=0.3)
    t, tokens = torch.tensor([10, 900]), torch.tensor([[8, 1, 9, 4], [8, 2, 9, 2]])
    said, about = tokens.flip(0).clone(), torch.tensor([0, 0])
    said[:, 1] = 5

    class Reads(Knows):
        def forward(self, x_t, t, text):
            assert torch.equal(text, Numbers()(tokens).last_hidden_state)
            return super().forward(x_t, t, text)

    alone = ddpm.DenoisingLoss(Reads(eps), Numbers(), recipe)(x_0, tokens, t, eps)
    words = other_words(Numbers(), kept=1.0, contrast=0.3)
    spoken = words(said, tokens, about)
    both = ddpm.WithOtherWords(Reads(eps), words, recipe)
    value = both(x_0, tokens, t, eps, said, tokens, about)
    assert spoken > 0
    assert value.item() == pytest.approx((alone + 0.3 * spoken).item(), rel=1e-5)
    assert both.text_encoder is words.encoder  # what learns from the one learns from the other


def test_what_is_guessed_of_a_picture_is_what_diffusers_guesses():
    generator = torch.Generator().manual_seed(0)
    x_t, predicted = (torch.randn((3, 4, 2, 2), generator=generator) for _ in range(2))
    t = torch.tensor([0, 500, 999])
    for kind in ("epsilon", "v_prediction"):
        recipe = dataclasses.replace(load_recipe().unet, prediction_type=kind)
        theirs = DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=kind,
            clip_sample=False,
        )
        guess = ddpm.DenoisingLoss(Knows(x_t), Mute(), recipe).guess(predicted, x_t, t)
        for i in range(3):
            known = theirs.step(predicted[i], int(t[i]), x_t[i]).pred_original_sample
            assert torch.allclose(guess[i], known, rtol=1e-3, atol=1e-4)


def test_rivals_are_counted_beside_both_losses():
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn((3, 4, 2, 2), generator=generator) for _ in range(2))
    recipe = dataclasses.replace(
        load_recipe().unet, captions_weight=0.3, rivals_weight=0.5, prediction_type="v_prediction"
    )
    t = torch.tensor([900, 10, 500])
    tokens = torch.tensor([[8, 1, 9, 4], [8, 2, 9, 2], [8, 3, 9, 3]])
    said, about, shown = tokens.flip(0).clone(), torch.tensor([0, 0, 0]), torch.tensor([1, 0])
    rivals = Rivals(x_0[[1, 0]], [0, 0], ["one", "two"])
    words = other_words(Numbers(), kept=1.0, contrast=0.3)
    both = ddpm.WithOtherWords(Knows(eps), words, recipe)(x_0, tokens, t, eps, said, tokens, about)
    apart = ddpm.ToldApart(Knows(eps), words, rivals, recipe)
    value = apart(x_0, tokens, t, eps, said, tokens, about, shown)
    noise = apart.alpha_bar[t].view(-1, 1, 1, 1)
    x_t = noise.sqrt() * x_0 + (1 - noise).sqrt() * eps
    guess = noise.sqrt() * x_t - (1 - noise).sqrt() * eps
    again = Rivals(x_0[[1, 0]], [0, 0], ["one", "two"])
    mistaken = again.loss(guess[:2], shown, torch.tensor([True, False]))
    assert mistaken > 0
    assert value.item() == pytest.approx((both + 0.5 * mistaken).item(), rel=1e-5)
    assert torch.equal(rivals.wrong, again.wrong)  # heard of the noisy one alone
    assert rivals.wrong[0] == 1


def test_noisier_timesteps_are_drawn_more_often():
    def drawn(early):
        recipe = dataclasses.replace(load_recipe().unet, early=early)
        t = ddpm.draw_timesteps(50_000, recipe, torch.Generator().manual_seed(0))
        assert t.dtype == torch.long
        assert t.min() >= 0
        assert t.max() == 999
        return [(t < limit).float().mean().item() for limit in (250, 500, 750)]

    assert drawn(1.0) == pytest.approx([0.25, 0.5, 0.75], abs=0.01)
    # P(T u^e < s T) = P(u < s^(1 / e))
    assert drawn(0.5) == pytest.approx([0.25**2, 0.5**2, 0.75**2], abs=0.01)


def test_the_weight_makes_the_error_of_the_noise_that_of_v():
    generator = torch.Generator().manual_seed(0)
    x_0, eps, wrong = (torch.randn((1, 4, 8, 8), generator=generator) for _ in range(3))
    for a in (0.9, 0.5, 0.05):
        alpha = torch.tensor(a)
        x_t = alpha.sqrt() * x_0 + (1 - alpha).sqrt() * eps
        implied = (x_t - (1 - alpha).sqrt() * wrong) / alpha.sqrt()
        v = alpha.sqrt() * eps - (1 - alpha).sqrt() * x_0
        v_wrong = alpha.sqrt() * wrong - (1 - alpha).sqrt() * implied
        of_v, of_eps = (v - v_wrong).square().mean(), (eps - wrong).square().mean()
        assert torch.allclose(of_v, ddpm.loss_weight(alpha, 1e9) * of_eps, rtol=1e-4)
    assert ddpm.loss_weight(torch.tensor(1e-4), 60.0) == 60
