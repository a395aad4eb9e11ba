from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from support.drawn import assert_legible
from support.errors import raises

from sdpipe.denoise import predict_x0
from sdpipe.errors import NotFiniteError, UsageError
from sdpipe.latents import pil_to_latents
from sdpipe.prompt.encode import encode_prompts
from sdpipe.show.denoise import denoise_data, denoise_figure, predict_noise

# Few steps save time; whether a model draws well in them is not looked at here.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew to")


@pytest.fixture(scope="module")
def image():
    return Image.radial_gradient("L").convert("RGB")


class Oracle:
    """A U-Net that knows the noise, and says so as its kind of output."""

    dtype = torch.float32

    def __init__(self, kind, alpha_bar, x_0, eps):
        self.kind, self.alpha_bar, self.x_0, self.eps, self.calls = kind, alpha_bar, x_0, eps, 0

    def __call__(self, x_t, t, text):
        self.calls += 1
        a = self.alpha_bar
        v = a**0.5 * self.eps - (1 - a) ** 0.5 * self.x_0
        output = {"epsilon": self.eps, "v_prediction": v, "sample": self.x_0}[self.kind]
        return SimpleNamespace(sample=output)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_unet_that_knows_the_noise_leaves_the_image(emoji, image, kind):
    first = denoise_data(emoji, "red apple", 600, image=image, seed=3)
    oracle = Oracle(kind, first.alpha_bar, first.x_0[None], first.eps[None])
    twin = emoji.with_parts(unet=oracle)
    config = {**emoji.components.scheduler_config, "prediction_type": kind}
    twin.components = replace(twin.components, scheduler_config=config)
    data = denoise_data(twin, "red apple", 600, image=image, seed=3)
    assert oracle.calls == 1
    assert data.prediction_type == kind
    assert torch.allclose(data.predicted, data.eps, atol=1e-4)
    assert torch.allclose(data.x0, data.x_0, atol=1e-4)
    assert data.correlation == pytest.approx(1, abs=1e-5)
    assert data.error < 1e-8
    assert_legible(denoise_figure(data))


def test_it_is_one_call_of_the_unet_by_hand(emoji, image):
    parts = emoji.components
    data = denoise_data(emoji, "red apple", 400, image=image, seed=9, dim=64)
    x_0 = pil_to_latents(parts.vae, image.resize((64, 64), Image.Resampling.LANCZOS))
    generator = torch.Generator().manual_seed(9)
    torch.randn(x_0.shape, generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    assert torch.equal(data.eps[None], eps)
    a = data.alpha_bar
    x_t = a**0.5 * x_0 + (1 - a) ** 0.5 * eps
    assert torch.allclose(data.x_t[None], x_t, atol=1e-5)
    with torch.no_grad():
        (text,) = encode_prompts(parts.tokenizer, parts.text_encoder, ["red apple"], [""]).cond
        output = parts.unet(data.x_t[None], 400, text).sample
    noise, x0 = {
        "epsilon": (output, (x_t - (1 - a) ** 0.5 * output) / a**0.5),
        "v_prediction": (
            a**0.5 * output + (1 - a) ** 0.5 * x_t,
            a**0.5 * x_t - (1 - a) ** 0.5 * output,
        ),
    }[parts.scheduler_config.get("prediction_type", "epsilon")]
    assert torch.allclose(data.predicted[None], noise, atol=1e-5)
    assert data.error == pytest.approx(float((noise - eps).square().mean()), rel=1e-4)
    assert torch.allclose(data.x0[None], x0, atol=1e-4)


def test_the_prompt_is_what_it_has_become_by_that_timestep(emoji, image):
    same = {"image": image, "seed": 0, "dim": 64, "steps": 10}
    for t, word in [(999, "cat"), (500, "cat"), (499, "(dog:1.2)"), (0, "(dog:1.2)")]:
        changing = denoise_data(emoji, "[cat:(dog:1.2):0.5] face", t, **same)
        expected = denoise_data(emoji, f"{word} face", t, **same)
        assert torch.equal(changing.predicted, expected.predicted)


def test_the_image_is_that_of_the_prompt(emoji):
    settings = {"seed": 4, "steps": 2, "g": 2.0, "dim": 64}
    data = denoise_data(emoji, "red apple", **settings)
    drawn = emoji.generate("red apple", **settings).images[0]
    assert torch.equal(data.x_0, pil_to_latents(emoji.components.vae, drawn)[0])
    assert data.to_dict()["seed"] == 4


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_predict_x0_are_one_equation(kind):
    g = torch.Generator().manual_seed(0)
    x_t, output = (torch.randn((1, 4, 3, 3), generator=g) for _ in range(2))
    for sigma in (0.05, 1.0, 14.0):
        a = 1 / (1 + sigma**2)
        eps, x_0 = predict_noise(x_t, output, sigma, kind), predict_x0(x_t, output, sigma, kind)
        assert torch.allclose(a**0.5 * x_0 + (1 - a) ** 0.5 * eps, x_t, atol=1e-4)


def test_what_cannot_be_predicted_is_refused(emoji, image):
    with raises(UsageError, value="t=1000", rule="out of range"):
        denoise_data(emoji, "cat", 1000)
    broken = Oracle("epsilon", 0.5, torch.zeros(1), torch.full((1, 4, 8, 8), torch.nan))
    with raises(NotFiniteError, rule="NaN"):
        denoise_data(emoji.with_parts(unet=broken), "cat", 9, image=image, seed=0, dim=64)


@pytest.mark.parametrize("prompt", ["", "long " * 80, "a $5 café with 🇫🇷"])
@pytest.mark.filterwarnings("ignore:emoji has never read")
def test_no_text_meets_another(emoji, image, prompt):
    data = denoise_data(emoji, prompt, 250, image=image, seed=0, dim=64)
    assert_legible(denoise_figure(data))
