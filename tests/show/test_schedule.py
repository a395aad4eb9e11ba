import diffusers
import numpy as np
import pytest
import torch
from support.drawn import assert_legible, drawn_texts
from support.errors import raises

from sdpipe.errors import UsageError
from sdpipe.loading.parts import read_scheduler
from sdpipe.settings import KARRAS_SCHEDULERS, SCHEDULERS
from sdpipe.show.schedule import schedule_data, schedule_figure

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
LATENTS = {"set_alpha_to_one": False, "steps_offset": 1}
THEIRS = {
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {**LATENTS, "clip_sample": False}),
    "pndm": (diffusers.PNDMScheduler, {**LATENTS, "skip_prk_steps": True}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
    "tcd": (diffusers.TCDScheduler, {}),
    "dpm++_2m_sde": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "dpm2_a": (diffusers.KDPM2AncestralDiscreteScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {"steps_offset": 1}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
}


def theirs(name, steps, **more):
    kind, config = THEIRS[name]
    scheduler = kind(**CONFIG, **config, **more)
    scheduler.set_timesteps(steps)
    return scheduler


def test_alpha_bar_is_the_product_of_what_every_timestep_leaves():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    alpha_bar = np.cumprod(1 - betas)
    data = schedule_data(CONFIG, ["lms"], 5)
    np.testing.assert_allclose(data.alpha_bar, alpha_bar, rtol=2e-5)
    np.testing.assert_allclose(data.sigma, np.sqrt(1 / alpha_bar - 1), rtol=2e-3)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [2, 20, 50])
def test_steps_are_where_diffusers_places_them(name, steps):
    calls = schedule_data(CONFIG, [name], steps).calls[name]
    other = theirs(name, steps)
    assert list(calls.timesteps) == other.timesteps.tolist()
    assert len(calls.sigmas) == len(calls.timesteps) + 1
    if name in ("dpm2", "dpm2_a"):  # the input that they scale tells the level of every call
        for i, t in enumerate(other.timesteps):
            scale = float(other.scale_model_input(torch.ones(1, 1, 1, 1), t))
            assert 1 / (1 + calls.sigmas[i] ** 2) ** 0.5 == pytest.approx(scale, rel=1e-5)
            other.step(torch.zeros(1, 1, 1, 1), t, torch.zeros(1, 1, 1, 1))
        assert calls.sigmas[-1] == 0
    elif hasattr(other, "sigmas"):
        assert list(calls.sigmas) == other.sigmas.tolist()
    else:
        alpha_bar = other.alphas_cumprod[other.timesteps]
        np.testing.assert_allclose(calls.sigmas[:-1], (1 / alpha_bar - 1).sqrt(), rtol=1e-4)


@pytest.mark.parametrize("name", KARRAS_SCHEDULERS)
def test_karras_noise_levels_are_those_of_diffusers(name):
    calls = schedule_data(CONFIG, [name], 12, karras=True).calls[name]
    other = theirs(name, 12, use_karras_sigmas=True)
    assert list(calls.timesteps) == other.timesteps.tolist()
    if name not in ("dpm2", "dpm2_a"):
        assert list(calls.sigmas) == other.sigmas.tolist()


def test_all_schedulers_are_shown_where_none_is_named():
    assert tuple(schedule_data(CONFIG, steps=4).calls) == SCHEDULERS
    assert tuple(schedule_data(CONFIG, steps=4, karras=True).calls) == KARRAS_SCHEDULERS


def test_what_no_scheduler_does_is_refused():
    with raises(UsageError, value="scheduler='foo'", remedy="lms"):
        schedule_data(CONFIG, ["lms", "foo"])
    with raises(UsageError, value="steps=1000", rule="out of range"):
        schedule_data(CONFIG, [], 1000)
    with raises(UsageError, value="ddim", rule="Karras"):
        schedule_data(CONFIG, ["lms", "ddim"], 4, karras=True)


def test_a_models_own_configuration_is_read_without_its_networks(emoji):
    config = read_scheduler("emoji")
    assert config == emoji.components.scheduler_config


@pytest.mark.parametrize(("names", "steps"), [((), 20), (["ddim"], 999), (["euler_a", "heun"], 2)])
def test_no_text_meets_another(names, steps):
    assert_legible(schedule_figure(schedule_data(CONFIG, names, steps)))


def test_a_row_says_how_often_the_unet_is_called():
    figure = schedule_figure(schedule_data(CONFIG, ["heun", "pndm", "lms"], 20))
    texts = [text for text, *_ in drawn_texts(figure)]
    assert [t for t in texts if t.endswith("calls")] == ["39 calls", "21 calls", "20 calls"]


def test_times_at_which_a_scheduler_calls_twice_are_marked():
    calls = schedule_data(CONFIG, ["heun", "pndm", "lms"], 20).calls
    assert calls["heun"].twice == sorted(calls["heun"].timesteps, reverse=True)[2::2]
    assert len(calls["pndm"].twice) == 1
    assert calls["lms"].twice == []
    for names, report in ((["lms"], False), (["lms", "heun"], True)):
        texts = [text for text, *_ in drawn_texts(schedule_figure(schedule_data(CONFIG, names, 9)))]
        assert ("where each scheduler calls the U-Net; orange: twice" in texts) == report
