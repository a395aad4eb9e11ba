"""Every formula of the training against something that does not share its code."""

import random

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import nn
from torch.distributions import Laplace, Normal, kl_divergence

from sdpipe import NotFiniteError, UsageError
from sdpipe.training import ddpm, glyphs, text, vae
from sdpipe.training.fit import fit
from sdpipe.training.recipe import EMOJI, load_recipe
from sdpipe.training.tokenizer import train_tokenizer


def test_alpha_bar_is_that_of_diffusers():
    ours = ddpm.cumulative_alpha(0.00085, 0.012, 1000)
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.allclose(ours, theirs.alphas_cumprod, rtol=1e-5)
    assert ours[0] == pytest.approx(1 - 0.00085)


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
    assert torch.allclose(vae.reconstruction_error(x, y, edges=0.0), -likelihood - constant)
    assert vae.reconstruction_error(x, x, edges=0.5) == 0
    # A constant offset has no edges, so only the first term sees it.
    offset = vae.reconstruction_error(x, x + 0.25, edges=10.0)
    assert offset == pytest.approx(0.25, abs=1e-4)


class Knows(nn.Module):
    """A U-Net that is told the noise."""

    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def forward(self, x_t, t, text):
        self.seen = x_t
        return type("Output", (), {"sample": self.eps})


def test_a_perfect_predictor_has_no_loss():
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn((6, 4, 2, 2), generator=generator) for _ in range(2))
    alpha_bar = ddpm.cumulative_alpha(0.00085, 0.012, 1000)
    t = torch.tensor([0, 10, 200, 500, 900, 999])
    unet = Knows(eps)
    assert ddpm.denoising_loss(unet, x_0, torch.zeros(6, 3, 5), t, eps, alpha_bar, 60.0) == 0
    a = alpha_bar[t].view(-1, 1, 1, 1)
    assert torch.allclose(unet.seen, a.sqrt() * x_0 + (1 - a).sqrt() * eps)
    off = ddpm.denoising_loss(Knows(eps + 1), x_0, torch.zeros(6, 3, 5), t, eps, alpha_bar, 60.0)
    assert off == pytest.approx((1 / alpha_bar[t]).clamp(max=60).mean().item(), rel=1e-4)


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


def test_contrastive_loss_is_least_where_each_caption_finds_its_picture():
    same = torch.eye(4, dtype=torch.bool)
    assert text.contrastive_loss(100 * torch.eye(4), same) == pytest.approx(0, abs=1e-6)
    assert text.contrastive_loss(torch.zeros(4, 4), same) == pytest.approx(np.log(4))
    twins = same.clone()
    twins[0, 1] = twins[1, 0] = True
    together, apart = 100 * twins.float(), 100 * same.float()
    assert text.contrastive_loss(together, twins) < text.contrastive_loss(apart, twins)


def test_a_tokenizer_is_laid_out_as_clips():
    captions = ["red apple", "red car", "green apple on a red background"] * 3
    tokenizer = train_tokenizer(captions, vocabulary=540, length=10)
    assert len(tokenizer) <= 540
    ids = tokenizer("Red apple", padding="max_length", truncation=True).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[:4] == [
        "<|startoftext|>",
        "red</w>",
        "apple</w>",
        "<|endoftext|>",
    ]
    assert len(ids) == 10
    assert tokenizer.convert_ids_to_tokens([0, 256]) == ["!", "!</w>"]
    assert tokenizer.decode(tokenizer("zebra ñ").input_ids, skip_special_tokens=True) == "zebra ñ"


def test_draw_is_source_over_background():
    ink = Image.new("RGBA", (136, 136))
    ink.paste((200, 0, 0, 128), (0, 0, 136, 68))  # the upper half, half transparent
    picture = glyphs.draw(ink.convert("RGBa"), 64, (0, 100, 200), scale=1.0)
    upper, lower = picture.getpixel((32, 10)), picture.getpixel((32, 50))
    expected = [round(c * 128 / 255 + b * 127 / 255) for c, b in ((200, 0), (0, 100), (0, 200))]
    assert np.abs(np.array(upper) - expected).max() <= 2
    assert lower == (0, 100, 200)
    moved = glyphs.draw(ink.convert("RGBa"), 64, (255, 255, 255), scale=0.5, shift=(0.25, 0.0))
    assert moved.getpixel((20, 20)) == (255, 255, 255)
    assert moved.getpixel((60, 20)) != (255, 255, 255)


def test_captions_name_the_colour_that_is_drawn():
    recipe = load_recipe()
    ink = Image.new("RGBa", (136, 136))
    rng = random.Random(0)
    unsaid = 0
    for _ in range(200):
        picture, colour = glyphs.draw_at_random(ink, recipe.pictures, rng)
        assert picture.getpixel((0, 0)) == glyphs.COLOURS[colour or "white"]
        unsaid += colour is None
    assert 0.3 < unsaid / 200 < 0.5
    assert glyphs.caption("cat", "blue") == "cat on a blue background"
    assert glyphs.caption("cat") == "cat"


def test_names_are_plain_english():
    pytest.importorskip("emoji")
    named = {glyph.name: glyph.text for glyph in glyphs.glyphs(load_recipe().pictures)}
    assert named["red apple"] == "\N{RED APPLE}"
    assert named["t-rex"]
    assert not any(letter in name for name in named for letter in ":_()\u2019")
    assert all(name == name.lower() for name in named)
    assert "man" not in " ".join(named).split()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 20240407", "", "seed is missing"),
        ("seed = 20240407", "seed = 1\nsede = 2", "sede is not known"),
        ("seed = 20240407", "seed = 'x'", "seed = 'x' is not of the type int"),
        ("dropped = 0.1", "dropped = true", "unet.dropped = True"),
        ("[vae]", "[vae", "is no TOML"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_by_name(tmp_path, old, new, message):
    path = tmp_path / "recipe.toml"
    path.write_text(EMOJI.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_recipe(path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")


class KilledError(Exception):
    pass


def test_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr("sdpipe.training.fit.SAVE_EVERY", 0.0)

    def start(folder, kill_at=None):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = nn.Linear(3, 1)

        def loss(step):
            if step == kill_at:
                raise KilledError
            x = torch.randn((8, 3), generator=torch.Generator().manual_seed(step))
            return (model(x) - x.sum(dim=1, keepdim=True)).square().mean()

        return fit("line", model, loss, folder, steps=60, learning_rate=0.1, ema=0.9)

    straight = start(tmp_path / "a")
    with pytest.raises(KilledError):
        start(tmp_path / "b", kill_at=31)
    resumed = start(tmp_path / "b")
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.allclose(straight.weight, torch.ones(1, 3), atol=0.1)
    log = (tmp_path / "b" / "loss.csv").read_text().splitlines()
    assert log[0] == "stage,step,loss,seconds"
    assert log[-1].startswith("line,60,")


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(NotFiniteError, match="loss of the bad is nan"):
        fit(
            "bad",
            model,
            lambda _: model(torch.full((1, 1), float("nan"))).sum(),
            tmp_path,
            steps=30,
            learning_rate=0.1,
        )
