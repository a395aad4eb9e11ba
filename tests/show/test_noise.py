import math

import pytest
import torch
from PIL import Image
from support.drawn import assert_legible, drawn_texts
from support.errors import raises

from sdpipe.errors import UsageError
from sdpipe.latents import latents_to_pil, pil_to_latents
from sdpipe.show.noise import noise_data, noise_figure


@pytest.fixture(scope="module")
def image():
    gradient = Image.linear_gradient("L").resize((128, 128))
    return Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))


def test_it_is_the_closed_form_with_the_models_alpha_bar(emoji, image):
    times = [0, 400, 999]
    data = noise_data(emoji, image, times, seed=5)
    config = emoji.components.scheduler_config
    low, high = config["beta_start"] ** 0.5, config["beta_end"] ** 0.5
    betas = torch.linspace(low, high, 1000, dtype=torch.float64) ** 2
    alpha_bar = (1 - betas).cumprod(0)[times]
    assert data.alpha_bar == pytest.approx(alpha_bar.tolist(), rel=2e-5)
    assert data.snr == pytest.approx((alpha_bar / (1 - alpha_bar)).tolist(), rel=2e-3)

    size = (emoji.components.defaults["width"], emoji.components.defaults["height"])
    x_0 = pil_to_latents(emoji.components.vae, image.resize(size))
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(5))
    for i, a in enumerate(alpha_bar.tolist()):
        x_t = math.sqrt(a) * x_0 + math.sqrt(1 - a) * eps
        assert torch.allclose(data.latents[i : i + 1], x_t, atol=1e-4)
        shown = latents_to_pil(emoji.components.vae, data.latents[i : i + 1])[0]
        assert shown.tobytes() == data.images[i].tobytes()


def test_a_seed_is_drawn_and_reported(emoji, image):
    data = noise_data(emoji, image, [500])
    again = noise_data(emoji, image, [500], seed=data.seed)
    assert torch.equal(again.latents, data.latents)
    assert data.to_dict()["seed"] == data.seed


def test_another_size(emoji, image):
    assert noise_data(emoji, image, [10], dim=64, seed=0).images[0].size == (64, 64)


@pytest.mark.parametrize("times", [[1000], [-1], []])
def test_timesteps_are_those_of_the_model(emoji, image, times):
    with raises(UsageError, value="t", remedy="999"):
        noise_data(emoji, image, times)


@pytest.mark.parametrize("times", [[0], [0, 100, 250, 500, 750, 999], list(range(0, 1000, 77))])
def test_no_text_meets_another(emoji, image, times):
    figure = noise_figure(noise_data(emoji, image, times, seed=0, dim=64))
    assert_legible(figure)
    assert "$t$ = 0" in [text for text, *_ in drawn_texts(figure)]
