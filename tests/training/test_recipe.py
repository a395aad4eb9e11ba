"""Recipes: `steps`, `size` and `seed` change all numbers that depend on them."""

import pytest

from sdpipe.training.adjust import adjust_recipe
from sdpipe.training.recipe_file import EMOJI, IMAGEFOLDER, load_recipe


@pytest.mark.parametrize("path", [EMOJI, IMAGEFOLDER])
def test_a_recipe_is_unchanged_unless_something_is_given(path):
    recipe = load_recipe(path)
    assert adjust_recipe(recipe) == recipe


@pytest.mark.parametrize("path", [EMOJI, IMAGEFOLDER])
def test_all_stages_change_in_proportion(path):
    recipe = load_recipe(path)
    short = adjust_recipe(recipe, steps=recipe.unet.steps // 10, size=64, seed=7)
    assert (short.size, short.seed, short.unet.steps) == (64, 7, recipe.unet.steps // 10)
    assert short.vae.steps == recipe.vae.steps // 10
    assert short.text_encoder.steps == recipe.text_encoder.steps // 10
    assert short.unet.warmup_steps == recipe.unet.warmup_steps // 10
    stages = {name: stage.steps for name, stage in recipe.stages().items()}
    assert {name: stage.steps for name, stage in short.stages().items()} == {
        name: round(steps / 10) for name, steps in stages.items()
    }
    # The whole run weighs the first steps as before: the average never outlives it.
    assert short.unet.ema_decay**short.unet.steps == pytest.approx(
        recipe.unet.ema_decay**recipe.unet.steps, rel=0.2
    )
    long = adjust_recipe(recipe, steps=3 * recipe.unet.steps)
    assert (long.unet.ema_decay, long.joint.steps) == (recipe.unet.ema_decay, 3 * stages["joint"])


def test_crops_are_never_larger_than_the_images():
    assert adjust_recipe(load_recipe(EMOJI), size=32).vae.crop_size == 32


def test_steps_of_fine_tuning_are_those_of_its_stage():
    recipe = load_recipe(IMAGEFOLDER)
    tuned = adjust_recipe(recipe, steps=recipe.finetuning.steps // 2, finetuning=True).finetuning
    assert tuned.steps == recipe.finetuning.steps // 2
    assert tuned.warmup_steps == recipe.finetuning.warmup_steps // 2
    assert tuned.learning_rate == recipe.finetuning.learning_rate


def test_every_stage_has_steps_of_its_own():
    recipe = load_recipe(EMOJI)
    assert list(recipe.stages()) == [
        *("unet", "joint", "paraphrases", "joint_paraphrases", "typos", "unet_adaptation"),
        "hard_negatives",
    ]
    cycles = recipe.refinement.joint_paraphrases
    before = recipe.unet.steps + recipe.joint.steps + recipe.refinement.paraphrases.steps
    assert recipe.steps_before("unet") == 0
    assert recipe.steps_before("joint_paraphrases") == before
    assert recipe.steps_before("typos") == before + cycles.cycles * cycles.steps
    assert list(load_recipe(IMAGEFOLDER).stages()) == ["unet", "joint"]
