from dataclasses import replace

import pytest
import torch
from support.drawn import assert_legible
from support.errors import raises

from sdpipe.denoise import predict_x0
from sdpipe.errors import UsageError
from sdpipe.latents import latents_to_pil
from sdpipe.prompt.encode import encode_prompts
from sdpipe.schedule import make_scheduler
from sdpipe.show.guidance import guidance_data, guidance_figure, split_x0

# Few steps save time; whether a model draws well in them is not looked at here.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew to")

SETTINGS = {"seed": 3, "steps": 4, "g": 3.0}


@pytest.fixture(scope="module")
def guided(emoji):
    return guidance_data(emoji, "red apple", [0, 2], **SETTINGS)


def test_every_number_is_that_of_two_calls_of_the_unet_by_hand(emoji, guided):
    parts = emoji.components
    result = emoji.generate("red apple", save_int=True, **SETTINGS)
    scheduler = make_scheduler("lms", parts.scheduler_config, 4)
    text = encode_prompts(parts.tokenizer, parts.text_encoder, ["red apple"], [""])
    (empty,), (prompt,) = text.uncond, text.cond
    kind = parts.scheduler_config.get("prediction_type", "epsilon")
    kept = []
    for step in result.steps:
        x_in = step.input / (step.sigma**2 + 1) ** 0.5
        t = scheduler.timesteps[step.index]
        with torch.no_grad():
            without, with_it = (parts.unet(x_in, t, e).sample for e in (empty, prompt))
        stats = guided.stats[step.index]
        assert (stats.timestep, stats.sigma) == (step.timestep, step.sigma)
        assert stats.norm_uncond == pytest.approx(float(without.norm()), rel=1e-4)
        assert stats.norm_cond == pytest.approx(float(with_it.norm()), rel=1e-4)
        assert stats.norm_difference == pytest.approx(float((with_it - without).norm()), rel=1e-3)
        cosine = torch.cosine_similarity(without.flatten(), with_it.flatten(), dim=0)
        assert stats.angle == pytest.approx(float(cosine.clamp(max=1).arccos().rad2deg()), abs=0.05)
        if step.index in (0, 2):
            kept.append([predict_x0(x_in, e, step.sigma, kind) for e in (without, with_it)])
            kept[-1].append(step.x0)
    assert guided.at == [0, 2]
    for images, latents in zip(guided.images, kept, strict=True):
        for image, z in zip(images, latents, strict=True):
            by_hand = latents_to_pil(parts.vae, z)[0]
            off = [abs(a - b) for a, b in zip(image.tobytes(), by_hand.tobytes(), strict=True)]
            assert max(off) <= 2


def test_the_image_of_the_last_guided_step_is_that_of_the_run(emoji, guided):
    result = emoji.generate("red apple", save_int=True, **SETTINGS)
    image = latents_to_pil(emoji.components.vae, result.steps[2].x0)[0]
    assert guided.images[1][2].tobytes() == image.tobytes()
    assert guided.settings == replace(result.settings[0], dim=None, save_int=False)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.filterwarnings("ignore:emoji has never read")
def test_predict_x0_of_each_follow_from_those_of_the_guided(kind, guided, emoji):
    step = emoji.generate("x", save_int=True, seed=0, steps=2, dim=64).steps[0]
    g = torch.Generator().manual_seed(0)
    x_in, both = torch.randn((1, 4, 8, 8), generator=g), torch.randn((2, 4, 8, 8), generator=g)
    for sigma in (0.3, 9.0):
        outputs = [*both.chunk(2), both[:1] + 5 * (both[1:] - both[:1])]
        wanted = [predict_x0(x_in, output, sigma, kind) for output in outputs]
        each = split_x0(replace(step, sigma=sigma, x0=wanted[2]), both, 5, kind)
        for found, other in zip(each, wanted, strict=True):
            assert torch.allclose(found, other, atol=1e-3)


def test_heun_counts_the_calls_of_the_unet(emoji):
    data = guidance_data(emoji, "owl", [4], seed=0, steps=3, scheduler="heun", dim=64)
    assert len(data.stats) == 5
    with raises(UsageError, value="at=5", rule="out of range", remedy="0 to 4"):
        guidance_data(emoji, "owl", [5], seed=0, steps=3, scheduler="heun", dim=64)


@pytest.mark.parametrize("scheduler", ["pndm", "dpm++", "euler_a"])
def test_as_many_steps_are_allowed_as_there_are(emoji, scheduler):
    data = guidance_data(emoji, "owl", seed=0, steps=2, scheduler=scheduler, dim=64)
    last = len(data.stats) - 1
    assert data.at[-1] == last
    with raises(UsageError, value=f"at={last + 1}", rule="out of range"):
        guidance_data(emoji, "owl", [last + 1], steps=2, scheduler=scheduler)


@pytest.mark.parametrize(("g", "which"), [(1, "with"), (0, "without")])
def test_one_prediction_alone_is_nothing_to_compare(emoji, g, which):
    with raises(UsageError, value=f"g={g}", rule=f"only the prediction {which} the prompt"):
        guidance_data(emoji, "owl", g=g)


def test_the_pipeline_is_as_it_was(emoji):
    unet = emoji.components.unet
    guidance_data(emoji, "owl", seed=0, steps=2, dim=64)
    assert emoji.components.unet is unet


def test_a_single_step_is_a_dot_at_zero(emoji):
    data = guidance_data(emoji, "owl", seed=0, steps=1, scheduler="dpm++", dim=64)
    assert data.at == [0]
    figure = guidance_figure(data)
    curves = [line for axes in figure.axes for line in axes.get_lines()]
    assert len(curves) == 4
    assert all(line.get_marker() == "o" and len(line.get_xdata()) == 1 for line in curves)
    below = {axes.get_xaxis() for axes in figure.axes if axes.get_lines()}
    assert [[int(t) for t in x.get_majorticklocs() if abs(t) < 0.04] for x in below] == [[0], [0]]
    assert all(t % 1 == 0 for x in below for t in x.get_majorticklocs())


@pytest.mark.parametrize(
    ("prompt", "at"), [("red apple", [0]), ("word " * 20, [0, 1, 2, 3]), ("a $5 🐶 日本", [3])]
)
def test_no_text_meets_another(guided, prompt, at):
    settings = replace(guided.settings, dim=None, prompt=prompt)
    images = [guided.images[0]] * len(at)
    for kind in ("epsilon", "v_prediction", "sample"):
        data = replace(guided, settings=settings, at=at, images=images, prediction_type=kind)
        assert_legible(guidance_figure(data))
