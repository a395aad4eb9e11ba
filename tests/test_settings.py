import dataclasses
import inspect
import json
import math

import numpy as np
import pytest
from support.errors import raises

from sdpipe import Pipeline
from sdpipe.errors import SdpipeError, UsageError
from sdpipe.settings import (
    DEFAULTS,
    DISTILLED_SCHEDULERS,
    KARRAS_SCHEDULERS,
    MAX_IMAGES,
    MAX_SEED,
    MODEL_DEFAULTS,
    NEEDS_INIT,
    OTHER_NAMES,
    RULES,
    SCHEDULERS,
    GenerateKwargs,
    ImageRef,
    ResolvedSettings,
    Settings,
    find_scheduler,
    label,
    our_name,
)
from sdpipe.sweep import Sweep

V1_4 = {"width": 512, "height": 512}


ID = {"name": "a.png", "sha256": "0" * 64}

# Of every setting: values that its rule allows, and values that it refuses.
VALUES = {
    "prompt": (["", "a (red:1.2) cat"], [3, None, b"x", "a)", "\udcff"]),
    "negative_prompt": (["", "dark"], [3, None, "(a"]),
    "seed": ([0, MAX_SEED], [-1, MAX_SEED + 1, 1.0, "3", True]),
    "n": ([1, MAX_IMAGES], [0, -1, MAX_IMAGES + 1, None, 1.5]),
    "dim": ([8, 512, 16384], [0, 7, 500, 16392, math.nan, "512"]),
    "width": ([8, 520, 16384], [-8, 513, 16392, "a"]),
    "height": ([8, 520, 16384], [-8, 513, 16392, "a"]),
    "seamless": (["xy", "x", "y"], ["", "z", 1]),
    "variation_strength": ([0.0, 0.3, 1.0], [1.5, -0.1, math.nan, "a", True]),
    "variation_seed": ([0, MAX_SEED], [-1, "a", 0.5]),
    "g": (
        [0.0, -3.0, 7.5, (12.0, 4.0)],
        ["abc", "12:4", math.nan, -math.inf, True, 1j, (12,), (1, 2, 3), (12, "4"), (math.nan, 1)],
    ),
    "guidance_rescale": ([0.0, 0.7, 1.0], [-0.1, 1.1, True, None, math.nan]),
    "guidance_interval": (
        [(0.0, 3.0), (0.3, 5.0)],
        [5, (1, 1), "0.3,5", (5, 1), (-1, 5), (1, 2, 3), (1, math.inf), (math.nan, 1)],
    ),
    "steps": ([2, 999], [0, 1000, -5, 2.5, "30", True]),
    "scheduler": (list(SCHEDULERS), ["k_lms", "", ["lms"], "LMS"]),
    "lms_order": ([1, 4], [0, 5, 2.0]),
    "karras": ([True, False], [1, "yes", None]),
    "spacing": (["leading", "linspace", "trailing"], ["", "karras", 1]),
    "zero_snr": ([True, False], [1, "yes", None]),
    "clip_skip": ([1, 100], [0, 101, None, "2"]),
    "batch_invariant": ([True, False], [1, "yes", None]),
    "hires_scale": ([1.5, 4.0], [1, 0, 9, math.nan, "2", True]),
    "hires_strength": ([0.2, 1.0], [0, 1.1, "a"]),
    "init_image": ([ID], ["cat.png", 5, [], {}, {**ID, "path": "/etc"}, {**ID, "sha256": "0"}]),
    "mask_image": ([ID], ["cat.png", 5, {"name": "a"}]),
    "strength": ([0.2, 1.0], [0, 1.1, math.nan, "a", True]),
    "fit": (["crop", "pad", "stretch"], ["", "none", 3]),
    "outpaint": (
        [(0, 0, 64, 0), (8, 8, 8, 8)],
        [5, (0, 0, 0, 0), (1, 2, 3), (0, 0, -8, 8), (0, 0, 7, 0), "0,0,8,0", (0, 0, 8.0, 0)],
    ),
    "save_int": ([True, False], [None, 1]),
    "safety": (["off", "flag"], ["", "on", None]),
}
NEEDS = {"hires_strength": {"hires_scale": 2}, **{name: {"init_image": ID} for name in NEEDS_INIT}}


def make(name, value):
    return Settings(**{"prompt": "x", **NEEDS.get(name, {}), name: value})


@pytest.mark.parametrize("name", RULES)
def test_no_rule_allows_an_object(name):
    with raises(UsageError, value=f"{name}="):
        make(name, object())


@pytest.mark.parametrize("name", VALUES)
def test_a_rule_allows_and_refuses(name):
    allowed, refused = VALUES[name]
    for value in allowed:
        kept = getattr(make(name, value), "width" if name == "dim" else name)
        assert kept == (ImageRef(**value) if isinstance(value, dict) else value)
    for value in refused:
        with raises(UsageError, value=name) as caught:
            make(name, value)
        assert caught.value.value.startswith((f"{name}=", f"{name}:")), caught.value
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in VALUES if "image" not in name])
def test_what_is_written_is_read(name):
    for value in VALUES[name][0]:
        assert RULES[name].parse(RULES[name].format(value)) == value


@pytest.mark.parametrize("name", [name for name in VALUES if RULES[name].parse is not str])
def test_what_cannot_be_read_stays_as_it_was_typed(name):
    assert RULES[name].parse("no such value") == "no such value"


def test_generate_takes_every_setting():
    assert {"prompt", *GenerateKwargs.__annotations__} == set(RULES)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        *[("guidance_scale", "g"), ("num_inference_steps", "steps"), ("generator", "seed")],
        *[("cfg_scale", "g"), ("sampler_name", "scheduler"), ("negative", "negative_prompt")],
        *[("size", "width and height"), ("stps", "steps")],
    ],
)
def test_names_of_other_programs_are_answered_with_ours(name, ours):
    for make in (Settings, Sweep):
        with pytest.raises((TypeError, UsageError), match=rf"'{name}'.*\b{ours}\b"):
            make(prompt="cat", **{name: 3})


def test_other_names_are_not_ours_and_lead_to_ours():
    parameters = {*RULES, *inspect.signature(Pipeline).parameters, "on_step"}
    parameters |= {"out", "lora", "embedding", "width and height"}
    for name, others in OTHER_NAMES.items():
        assert name in parameters
        assert parameters.isdisjoint(others.split())
        assert {our_name(f"--{other.replace('_', '-')}") for other in others.split()} == {name}


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        ("DPM++ 2M Karras", "it is called dpm++ here, and Karras' noise levels are the setting"),
        ("k_lms", "it is called lms here"),
        ("plms", "it is called pndm here"),
        ("Euler a", "it is called euler_a here"),
        ("karras", "Karras' noise levels are the setting karras (--karras)"),
        ("DPM fast", "use one of lms, ddim, "),
    ],
)
def test_samplers_of_other_programs_are_answered_with_ours(typed, remedy):
    with raises(UsageError, value=f"scheduler={typed!r}", remedy=remedy):
        Settings(prompt="cat", scheduler=typed)


def test_a_size_is_answered_with_width_and_height():
    with raises(UsageError, value="dim='512x768'", remedy="width=512 and height=768"):
        Settings(prompt="cat", dim="512x768")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", 20, "20 steps"),
        ("g", (12.0, 4.0), "g 12:4"),
        ("karras", True, "karras"),
        ("karras", False, "no karras"),
        ("negative_prompt", "", "(no negative prompt)"),
        ("dim", 512, "512 x 512"),
        ("guidance_interval", (0.3, 5.0), "interval 0.3,5"),
        ("init_image", ImageRef("a.png", "0" * 64), "from a.png"),
        ("fit", "pad", "fit pad"),
    ],
)
def test_a_label_needs_no_heading(name, value, words):
    assert label(name, value) == words


def test_unset_is_none_and_nothing_but_the_prompt_is_needed():
    settings = Settings(prompt="red apple")
    unset = ("g", "steps", "seed", "width", "height", "scheduler", "lms_order")
    assert all(getattr(settings, name) is None for name in unset)
    assert (settings.n, settings.negative_prompt) == (1, "")
    assert not any((settings.karras, settings.batch_invariant, settings.save_int))


def test_it_is_frozen_and_takes_names_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings(prompt="x").g = 1.0
    with pytest.raises(TypeError):
        Settings("x")


def test_zero_is_a_value():
    settings = Settings(prompt="", g=0, seed=0).resolved(V1_4)
    assert settings.g == 0.0
    assert settings.seed == 0


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"dim": 512, "width": 512}, ("dim", "sets width and height", "either dim")),
        ({"seed": MAX_SEED, "n": 2}, (f"seed={MAX_SEED}", f"0 to {MAX_SEED - 1}", "")),
        ({"variation_seed": MAX_SEED, "n": 2}, ("variation_seed", f"0 to {MAX_SEED - 1}", "")),
        ({"lms_order": 2, "scheduler": "ddim"}, ("lms_order=2", "not for ddim", "leave one")),
        (
            {"spacing": "trailing", "scheduler": "lcm"},
            ("spacing='trailing'", "timesteps that its models learnt", "leave one"),
        ),
        ({"zero_snr": True, "scheduler": "lms"}, ("lms", "zero terminal SNR", "ddim, euler")),
        ({"hires_strength": 0.5}, ("hires_strength=0.5", "second pass", "hires_scale")),
        ({"hires_scale": 2, "init_image": ID}, ("hires_scale=2", "init_image", "larger width")),
        ({"hires_scale": 4, "width": 8192}, ("width=8192", "32768 pixels", "smaller")),
        (
            {"hires_scale": 2, "hires_strength": 0.01, "steps": 50},
            ("hires_strength=0.01", "no step of 50", "0.02"),
        ),
        ({"strength": 0.5}, ("strength", "image to begin with", "init_image")),
        ({"fit": "pad"}, ("fit", "image to begin with", "init_image")),
        ({"mask_image": ID}, ("mask_image", "image to begin with", "init_image")),
        (
            {"init_image": ID, "outpaint": (64, 0, 0, 0), "width": 64},
            ("width=64", "outpaint adds 64", "72 or more"),
        ),
    ],
)
def test_rules_between_settings(values, error):
    value, rule, remedy = error
    with raises(UsageError, value=value, rule=rule, remedy=remedy):
        Settings(**{"prompt": "x", **values})


@pytest.mark.parametrize("scheduler", DISTILLED_SCHEDULERS)
def test_a_scheduler_of_distilled_models_has_no_more_steps_than_they_learnt(scheduler):
    assert Settings(prompt="x", scheduler=scheduler, steps=50).steps == 50
    with raises(UsageError, value="steps=51", rule="50 timesteps", remedy="1 to 50"):
        Settings(prompt="x", scheduler=scheduler, steps=51)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_karras_levels_only_where_a_scheduler_has_them(scheduler):
    if scheduler in KARRAS_SCHEDULERS:
        assert Settings(prompt="x", scheduler=scheduler, karras=True).karras
    else:
        with raises(UsageError, value=scheduler, remedy=", ".join(KARRAS_SCHEDULERS)):
            Settings(prompt="x", scheduler=scheduler, karras=True)


def test_a_refusal_is_a_value_error_and_one_of_ours():
    assert issubclass(UsageError, ValueError)
    assert issubclass(UsageError, SdpipeError)


def test_the_ends_of_every_range_are_in_it():
    Settings(prompt="x", steps=999, dim=16384, seed=MAX_SEED, lms_order=1)
    Settings(prompt="x", steps=2, dim=8, seed=MAX_SEED - 4, n=5, lms_order=4)


def test_numbers_of_other_libraries_become_plain_ones():
    settings = Settings(prompt="x", g=np.float32(2.5), steps=np.int64(7), seed=np.uint64(MAX_SEED))
    assert [type(v) for v in (settings.g, settings.steps, settings.seed)] == [float, int, int]
    assert settings.seed == MAX_SEED


def test_dim_sets_both_sides_and_is_not_kept():
    settings = Settings(prompt="x", dim=640)
    assert (settings.width, settings.height) == (640, 640)
    assert "dim" not in settings.to_dict()


def test_resolved_fills_from_the_model_and_then_from_the_fallbacks():
    own = {**V1_4, "g": 3.0, "steps": 30, "lms_order": 2}
    settings = Settings(prompt="x", steps=20, seed=5).resolved(own)
    assert (settings.g, settings.steps, settings.lms_order) == (3.0, 20, 2)
    assert (settings.width, settings.height, settings.scheduler) == (512, 512, "lms")
    plain = Settings(prompt="x").resolved(V1_4)
    assert {name: getattr(plain, name) for name in DEFAULTS} == dict(DEFAULTS)
    assert all(getattr(plain, name) is not None for name in MODEL_DEFAULTS)
    assert plain.resolved({"width": 8, "height": 8}) == plain


def test_resolved_draws_a_seed_and_a_new_one_each_time():
    seeds = {Settings(prompt="x").resolved(V1_4).seed for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_only_lms_keeps_an_order():
    settings = Settings(prompt="x", scheduler="euler").resolved({**V1_4, "lms_order": 2})
    assert settings.lms_order is None
    own = Settings(prompt="x").resolved({**V1_4, "scheduler": "ddim", "lms_order": 2})
    assert (own.scheduler, own.lms_order) == ("ddim", None)


def test_what_does_not_fit_the_models_own_scheduler_is_told():
    with pytest.raises(UsageError, match=r"Karras.*leave karras out"):
        Settings(prompt="x", karras=True).resolved({**V1_4, "scheduler": "ddim"})


def test_each_picture_of_a_run():
    run = Settings(prompt="x", seed=7, n=3, batch_invariant=True).resolved(V1_4)
    assert [s.seed for s in run.per_image()] == [7, 8, 9]
    assert all(s.n == 1 for s in run.per_image())
    assert run.per_image()[0] == dataclasses.replace(run, n=1)


def test_resolved_settings_have_every_value_that_a_run_needs():
    with pytest.raises(UsageError, match="steps=None is not resolved"):
        ResolvedSettings(**{**Settings(prompt="x").resolved(V1_4).to_dict(), "steps": None})


@pytest.mark.parametrize(
    ("strength", "taken"), [(None, 50), (1, 50), (0.8, 40), (0.59, 29), (0.02, 1)]
)
def test_a_pass_takes_the_last_steps_rounded_down_as_diffusers_does(strength, taken):
    assert Settings(prompt="x").resolved(V1_4).num_steps_taken(strength) == taken


@pytest.mark.parametrize(
    "settings",
    [
        Settings(prompt='é "quoted"\n日本', g=0, seed=MAX_SEED, steps=9, width=64, height=8),
        Settings(prompt="", negative_prompt="-", scheduler="heun", karras=True, n=4),
        Settings(prompt="x", batch_invariant=True, save_int=True, lms_order=3, dim=64).resolved({}),
    ],
)
def test_json_both_ways(settings):
    assert type(settings).from_json(settings.to_json()) == settings
    assert type(settings).from_dict(settings.to_dict()) == settings
    assert json.loads(settings.to_json()) == settings.to_dict()
    assert "\n" not in settings.to_json()


def test_from_dict_takes_dim():
    assert Settings.from_dict({"prompt": "x", "dim": 64}).height == 64


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"prompt": "x", "guidance": 3}', "'guidance'"),
        ("{}", "settings"),
        ("[1]", "[1]"),
        ("nonsense", "settings"),
        ('{"prompt": "x", "g": NaN}', "g=nan"),
        ('{"prompt": "x", "steps": 1e400}', "steps=inf"),
        ('{"prompt": "x", "seed": null, "dim": "512"}', "dim='512'"),
    ],
)
def test_foreign_json_is_refused(text, value):
    with raises(UsageError, value=value):
        Settings.from_json(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("k_euler_a", ("euler_a", False)),  # CompVis, InvokeAI 1
        ("k_euler_ancestral", ("euler_a", False)),  # NovelAI
        ("Euler A", ("euler_a", False)),  # SD.Next
        ("EulerAncestralDiscreteScheduler", ("euler_a", False)),  # diffusers
        ("euler discrete", ("euler", False)),  # OneTrainer
        ("DPM++ 2M Karras", ("dpm++", True)),  # A1111
        ("DPM++ 2M Karras".upper(), ("dpm++", True)),
        ("sample_dpmpp_2m", ("dpm++", False)),  # ComfyUI, at first
        ("dpm++2m", ("dpm++", False)),  # stable-diffusion.cpp
        ("DPMSolverMultistepScheduler", ("dpm++", False)),
        ("plms", ("pndm", False)),
        ("uni_pc", ("unipc", False)),
        ("lms", ("lms", False)),
        ("DPM++ 2M SDE", ("dpm++_2m_sde", False)),
        ("DPM++ 2M SDE Karras", ("dpm++_2m_sde", True)),
        ("DPM++ 2S a", (None, False)),
        ("k_dpm_2_ancestral", ("dpm2_a", False)),
        ("KDPM2DiscreteScheduler", ("dpm2", False)),
        ("dpm++2mv2", (None, False)),
        ("k", (None, False)),
        ("", (None, False)),
    ],
)
def test_schedulers_by_the_names_of_other_programs(name, expected):
    assert find_scheduler(name) == expected
