"""Recipes: what is wrong in one is refused by name, and a change is one of the whole."""

import dataclasses

import pytest

from sdpipe import UsageError
from sdpipe.training.recipe import EMOJI, IMAGEFOLDER, adjusted, load_recipe
from sdpipe.training.rules import RULES


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


def test_a_recipe_is_changed_as_a_whole():
    recipe = load_recipe(IMAGEFOLDER)
    short = adjusted(recipe, steps=recipe.unet.steps // 10, dim=64, seed=7)
    assert (short.size, short.seed, short.unet.steps) == (64, 7, recipe.unet.steps // 10)
    assert short.vae.steps == recipe.vae.steps // 10
    assert short.text.steps == recipe.text.steps // 10
    assert short.unet.warmup == recipe.unet.warmup // 10
    # As many steps as before weigh as much: an average that outlived the run would not know it.
    assert short.unet.ema**short.unet.steps == pytest.approx(
        recipe.unet.ema**recipe.unet.steps, rel=0.2
    )
    assert adjusted(recipe) == recipe
    emoji = load_recipe(EMOJI)
    assert adjusted(emoji) == emoji
    for stage in ("joint", "other_words", "both", "spelling", "reading", "placing"):
        short = getattr(adjusted(emoji, steps=emoji.unet.steps // 10), stage)
        assert short.steps == round(getattr(emoji, stage).steps / 10)
    assert adjusted(emoji, dim=32).vae.crop == 32
    tuned = adjusted(recipe, going_on=True).unet
    assert (tuned.steps, tuned.learning_rate) == (recipe.tune.steps, recipe.tune.learning_rate)
    assert tuned.block_out_channels == recipe.unet.block_out_channels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 100}, "dim=100 is not a multiple of 32.*take 96 or 128"),
        ({"dim": 8}, "take 32"),
        ({"tokenizer": {"length": 10}}, "tokenizer.length = 10"),
        ({"vae": {"crop": 20}}, "vae.crop = 20"),
        ({"vae": {"batch": 0}}, "vae.batch = 0"),
        ({"unet": {"learning_rate": 0.0}}, "unet.learning_rate = 0.0"),
        ({"unet": {"ema": 1.0}}, "unet.ema = 1.0"),
        ({"unet": {"muon_rate": -1.0}}, "unet.muon_rate = -1.0"),
        ({"unet": {"reworded": 1.5}}, "unet.reworded = 1.5.*from 0 to 1"),
        ({"other_words": {"contrast": -1.0}}, "other_words.contrast = -1.0.*0 or more"),
        ({"other_words": {"hard": 1.5}}, "other_words.hard = 1.5 .*from 0 to 1"),
        ({"spelling": {"taken": 1.5}}, "spelling.taken = 1.5 .*from 0 to 1"),
        ({"both": {"captions": -1}}, "both.captions = -1 .*0 or more"),
        ({"both": {"captions_weight": -0.5}}, "both.captions_weight = -0.5 .*0 or more"),
        ({"placing": {"rivals_hard": 1.5}}, "placing.rivals_hard = 1.5 .*from 0 to 1"),
        ({"placing": {"rivals_weight": -1.0}}, "placing.rivals_weight = -1.0 .*0 or more"),
        ({"placing": {"rivals_early": 0.0}}, "placing.rivals_early = 0.0 .*more than 0"),
        ({"placing": {"rivals": 3}}, "placing.rivals = 3 .*placing.captions is 0; take 1"),
        ({"joint": {"early": 0.0}}, "joint.early = 0.0 .*more than 0"),
        ({"other_words": {"shares": [1, 2]}}, r"other_words.shares = \[1, 2\].*4 numbers.*placed"),
        ({"other_words": {"shares": [0, 0, 0, 0]}}, "not all 0"),
        ({"other_words": {"shares": [1, -1, 1, 1]}}, "of 0 or more"),
        ({"unet": {"prediction_type": "x0"}}, "prediction_type = 'x0'.*epsilon or v_prediction"),
    ],
)
def test_numbers_that_cannot_be_trained_with_are_refused(change, message):
    recipe = load_recipe(IMAGEFOLDER)
    dim = change.pop("dim", None)
    tables = {k: dataclasses.replace(getattr(recipe, k), **v) for k, v in change.items()}
    with pytest.raises(UsageError, match=message):
        adjusted(dataclasses.replace(recipe, **tables), dim=dim)


def test_every_rule_is_one_of_a_number_that_recipes_have():
    numbers = load_recipe(EMOJI).numbers()
    names = {*numbers, *(name.rpartition(".")[2] for name in numbers)}
    assert not RULES.keys() - names
