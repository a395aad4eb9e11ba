import dataclasses
import json
import math

import numpy as np
import pytest

from sdpipe.errors import SdpipeError, UsageError
from sdpipe.settings import (
    FALLBACKS,
    KARRAS_SCHEDULERS,
    MAX_IMAGES,
    MAX_SEED,
    MODEL_DEFAULTS,
    NEED_TWO_STEPS,
    SCHEDULERS,
    ResolvedSettings,
    Settings,
)

V1_4 = {"width": 512, "height": 512}


def refusal(**values):
    """What a person is told about these values."""
    with pytest.raises(UsageError) as caught:
        Settings(**{"prompt": "x", **values})
    return str(caught.value)


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
    ("values", "parts"),
    [
        ({"prompt": 3}, ["prompt=3", "not text"]),
        ({"prompt": None}, ["prompt=None", "string"]),
        ({"negative_prompt": b"x"}, ["negative_prompt=b'x'", "not text"]),
        ({"karras": 1}, ["karras=1", "true or false"]),
        ({"batch_invariant": "yes"}, ["batch_invariant='yes'", "true or false"]),
        ({"save_int": None}, ["save_int=None", "true or false"]),
        ({"steps": 0}, ["steps=0", "1 to 999"]),
        ({"steps": 1000}, ["steps=1000", "1 to 999"]),
        ({"steps": -5}, ["steps=-5", "1 to 999"]),
        ({"steps": 2.5}, ["steps=2.5", "whole number", "1 to 999"]),
        ({"steps": "30"}, ["steps='30'", "whole number"]),
        ({"steps": True}, ["steps=True", "whole number"]),
        ({"dim": 500}, ["dim=500", "multiple of 8", "496 and 504"]),
        ({"dim": 0}, ["dim=0", "8 to 16384", "multiples of 8"]),
        ({"dim": 7}, ["dim=7", "8 to 16384"]),
        ({"dim": 16392}, ["dim=16392", "8 to 16384"]),
        ({"dim": math.nan}, ["dim=nan", "whole number"]),
        ({"width": 513}, ["width=513", "multiple of 8", "512 and 520"]),
        ({"height": -8}, ["height=-8", "8 to 16384"]),
        ({"dim": 512, "width": 512}, ["dim", "width and height", "either"]),
        ({"dim": 512, "height": 256}, ["dim", "width and height", "either"]),
        ({"g": "abc"}, ["g='abc'", "not a number", "7.5"]),
        ({"g": math.nan}, ["g=nan", "finite", "7.5"]),
        ({"g": math.inf}, ["g=inf", "finite"]),
        ({"g": -math.inf}, ["g=-inf", "finite"]),
        ({"g": True}, ["g=True", "not a number"]),
        ({"g": 1j}, ["g=1j", "not a number"]),
        ({"g": (12,)}, ["g=(12,)", "not a number", "(12, 4)"]),
        ({"g": (1, 2, 3)}, ["g=(1, 2, 3)", "not a number", "(12, 4)"]),
        ({"g": (12, "4")}, ["g=(12, '4')", "not a number"]),
        ({"g": "12:4"}, ["g='12:4'", "12:4 on the command line", "(12, 4) in Python"]),
        ({"g": (math.nan, 1)}, ["g=nan:1", "finite"]),
        ({"guidance_rescale": -0.1}, ["guidance_rescale=-0.1", "0, which", "to 1"]),
        ({"guidance_rescale": True}, ["guidance_rescale=True", "not a number"]),
        ({"guidance_rescale": None}, ["guidance_rescale=None", "not a number"]),
        ({"guidance_interval": 5}, ["guidance_interval=5", "two noise levels", "0.3,5"]),
        ({"guidance_interval": (1, 1)}, ["guidance_interval=1,1", "two noise levels"]),
        ({"guidance_interval": "0.3,5"}, ["guidance_interval='0.3,5'", "two noise levels"]),
        ({"n": 0}, ["n=0", f"1 to {MAX_IMAGES}"]),
        ({"n": -1}, ["n=-1", f"1 to {MAX_IMAGES}"]),
        ({"n": MAX_IMAGES + 1}, [f"n={MAX_IMAGES + 1}", "1 to"]),
        ({"n": None}, ["n=None", "whole number"]),
        ({"seed": -1}, ["seed=-1", "0 to", "leave it out"]),
        ({"seed": 2**64}, [f"seed={2**64}", "0 to", "leave it out"]),
        ({"seed": 1.0}, ["seed=1.0", "whole number", "leave it out"]),
        ({"seed": MAX_SEED, "n": 2}, [f"seed={MAX_SEED}", f"0 to {MAX_SEED - 1}"]),
        ({"lms_order": 0}, ["lms_order=0", "1 to 4"]),
        ({"lms_order": 5}, ["lms_order=5", "1 to 4"]),
        ({"lms_order": 2, "scheduler": "ddim"}, ["lms_order=2", "lms", "ddim", "leave one"]),
        ({"scheduler": "k_lms"}, ["scheduler='k_lms'", *SCHEDULERS]),
        ({"scheduler": ""}, ["scheduler=''", *SCHEDULERS]),
        ({"scheduler": ["lms"]}, ["scheduler=['lms']", *SCHEDULERS]),
        ({"scheduler": "LMS"}, ["scheduler='LMS'", "lms"]),
    ],
)
def test_a_refusal_has_the_value_the_rule_and_the_remedy(values, parts):
    told = refusal(**values)
    assert all(part in told for part in parts), told
    assert told.endswith(".")
    assert "\n" not in told


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
def test_one_step_is_refused_where_it_would_start_without_noise(scheduler):
    if scheduler is None or scheduler in NEED_TWO_STEPS:
        told = refusal(scheduler=scheduler, steps=1)
        assert all(part in told for part in ("steps=1", "sigma 0.05", "2 steps", "dpm++, unipc"))
        assert Settings(prompt="x", scheduler=scheduler, steps=2).steps == 2
    else:
        assert Settings(prompt="x", scheduler=scheduler, steps=1).steps == 1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_karras_levels_only_where_a_scheduler_has_them(scheduler):
    if scheduler in KARRAS_SCHEDULERS:
        assert Settings(prompt="x", scheduler=scheduler, karras=True).karras
    else:
        told = refusal(scheduler=scheduler, karras=True)
        assert scheduler in told
        assert all(name in told for name in KARRAS_SCHEDULERS)


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
    assert {name: getattr(plain, name) for name in FALLBACKS} == dict(FALLBACKS)
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
    ("text", "parts"),
    [
        ('{"prompt": "x", "guidance": 3}', ["'guidance'", "negative_prompt", "dim"]),
        ("{}", ["without a prompt"]),
        ("[1]", ["object of names and values", "[1]"]),
        ("nonsense", ["not readable as JSON"]),
        ('{"prompt": "x", "g": NaN}', ["g=nan", "finite"]),
        ('{"prompt": "x", "steps": 1e400}', ["steps=inf", "whole number"]),
        ('{"prompt": "x", "seed": null, "dim": "512"}', ["dim='512'", "whole number"]),
    ],
)
def test_foreign_json_is_refused_with_a_reason(text, parts):
    with pytest.raises(UsageError) as caught:
        Settings.from_json(text)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
