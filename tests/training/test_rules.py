"""Rules of recipes: numbers that training cannot use are refused by name."""

import pytest
from support.errors import raises
from support.training_run import RECIPE, recipe_with

from sdpipe import UsageError
from sdpipe.training.adjust import adjust_recipe
from sdpipe.training.recipe_file import EMOJI, load_recipe


@pytest.mark.parametrize(
    ("name", "number", "rule"),
    [
        ("tokenizer.max_length", 10, "is less than 18"),
        ("vae.crop_size", 20, "is not a multiple of 8"),
        ("vae.batch_size", 0, "is less than 1"),
        ("unet.learning_rate", 0.0, "is not above 0"),
        ("unet.ema_decay", 1.0, "is not from 0 to below 1"),
        ("unet.muon_learning_rate", -1.0, "is less than 0"),
        ("unet.paraphrase_fraction", 1.5, "is not from 0 to 1"),
        ("unet.prediction_type", "x0", "is not epsilon or v_prediction"),
        ("joint.timestep_exponent", 0.0, "is not above 0"),
        ("refinement.paraphrases.contrastive_weight", -1.0, "is less than 0"),
        ("refinement.paraphrases.hard_fraction", 1.5, "is not from 0 to 1"),
        ("refinement.paraphrases.shares", [1, 2], "is not 4 numbers"),
        ("refinement.paraphrases.shares", [0, 0, 0, 0], "not all 0"),
        ("refinement.paraphrases.shares", [1, -1, 1, 1], "of 0 or more"),
        ("refinement.typos.alpha", 1.5, "is not from 0 to 1"),
        ("refinement.joint_paraphrases.paraphrases", -1, "is less than 0"),
        ("refinement.joint_paraphrases.distillation_weight", -0.5, "is less than 0"),
        ("refinement.hard_negatives.paraphrases", 0, "needs refinement.hard_negatives.paraphrases"),
        ("refinement.hard_negatives.hard_fraction", 1.5, "is not from 0 to 1"),
        ("refinement.hard_negatives.contrastive_weight", -1.0, "is less than 0"),
        ("refinement.hard_negatives.negative_timestep_exponent", 0.0, "is not above 0"),
        ("unet.steps", 0, "is less than 1"),
        ("finetuning.steps", 0, "is less than 1"),
        ("samples.steps", 0, "is less than 1"),
    ],
)
def test_wrong_numbers_are_refused(tmp_path, name, number, rule):
    path = recipe_with(tmp_path / "recipe.toml", **{name.replace(".", "__"): number})
    with raises(UsageError, value=name.partition(".")[0], rule=rule):
        adjust_recipe(load_recipe(path))


def test_paraphrases_need_their_table(tmp_path):
    start, end = RECIPE.index("[refinement.paraphrases]"), RECIPE.index("[refinement.joint_p")
    (tmp_path / "recipe.toml").write_text(RECIPE[:start] + RECIPE[end:])
    recipe = load_recipe(tmp_path / "recipe.toml")
    with raises(UsageError, value="joint_paraphrases.paraphrases = 3", rule="needs the table"):
        adjust_recipe(recipe)


@pytest.mark.parametrize(("size", "remedy"), [(100, "96 or 128"), (8, "32")])
def test_a_size_that_the_networks_cannot_take_is_refused(size, remedy):
    with raises(UsageError, value=f"dim={size}", rule="multiple of 32", remedy=remedy):
        adjust_recipe(load_recipe(EMOJI), size=size)
