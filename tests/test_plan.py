import pytest
from support.errors import raises

from sdpipe import UsageError
from sdpipe.plan import plan

OWN = {
    "defaults": {"width": 128, "height": 128, "g": 3.0, "lms_order": 2},
    "factor": 8,
    "layers": 3,
}


def test_picture_k_shows_prompt_k_over_n_and_has_seed_plus_k():
    run = plan(["cat", "dog"], n=3, seed=10, **OWN)
    assert [s.prompt for s in run] == ["cat"] * 3 + ["dog"] * 3
    assert [s.seed for s in run] == [10, 11, 12, 13, 14, 15]
    assert {s.n for s in run} == {1}


def test_a_string_is_one_prompt():
    [settings] = plan("cat", seed=0, **OWN)
    assert (settings.prompt, settings.seed) == ("cat", 0)


def test_the_models_own_values_stand_where_nothing_is_said():
    [settings] = plan("cat", **OWN)
    assert (settings.g, settings.steps, settings.width, settings.lms_order) == (3.0, 50, 128, 2)
    assert settings.scheduler == "lms"
    assert settings.seed is not None
    [settings] = plan("cat", g=0, dim=64, scheduler="euler", **OWN)
    assert (settings.g, settings.height, settings.lms_order) == (0.0, 64, None)


def test_seeds_that_are_drawn_differ():
    assert len({plan("cat", **OWN)[0].seed for _ in range(8)}) == 8


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "at least one"),
        (["cat", 3], {}, "prompt=3 is not text"),
        (["cat", "dog"], {"n": 0}, "n=0"),
        ("cat", {"n": 2, "seed": 2**64 - 1}, "seed="),
        ("cat", {"dim": 64, "width": 64}, "either dim or"),
        ("cat", {"stps": 3}, "stps"),
    ],
)
def test_what_does_not_go_together_is_refused(prompt, settings, message):
    with pytest.raises((UsageError, TypeError), match=message):
        plan(prompt, **settings, **OWN)


def test_a_vae_of_another_factor_has_a_stricter_rule():
    coarse = {**OWN, "factor": 16}
    with pytest.raises(UsageError, match=r"width=72 is not a multiple of 16.*64 or 80"):
        plan("cat", width=72, height=64, **coarse)


def test_layers_that_the_text_encoder_does_not_have_are_refused():
    [settings] = plan("cat", clip_skip=3, **OWN)
    assert settings.clip_skip == 3
    with raises(UsageError, value="clip_skip=4", rule="the 3 layers", remedy="1, the last layer"):
        plan("cat", clip_skip=4, **OWN)


def test_a_list_of_seeds_is_an_image_of_each_for_every_prompt():
    images = plan(["cat", "dog"], **OWN, seed=[9, 2, 9])
    assert [(s.prompt, s.seed) for s in images] == [
        *(("cat", 9), ("cat", 2), ("cat", 9), ("dog", 9), ("dog", 2), ("dog", 9)),
    ]
    assert all(s.n == 1 for s in images)


@pytest.mark.parametrize(
    ("call", "value", "rule"),
    [
        ({"seed": []}, "seed=[]", "is empty"),
        ({"seed": [1, "x"]}, "seed='x'", "whole number"),
        ({"seed": [1, -1]}, "seed=-1", ""),
        ({"seed": [1, 2], "n": 3}, "n=3 with 2 seeds", "contradict"),
        ({"seed": [1], "variation_seed": 2}, "variation_seed", "one seed for all"),
        ({"seed": [1] * 100_001}, "100001", "more than"),
    ],
)
def test_a_list_that_is_none_of_seeds_is_refused(call, value, rule):
    with raises(UsageError, value=value, rule=rule):
        plan("cat", **OWN, **call)
