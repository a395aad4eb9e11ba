"""Rules of recipes: numbers that training cannot use are refused by name."""

import dataclasses

import pytest
from support.errors import raises

from sdpipe import UsageError
from sdpipe.training.adjust import adjust_recipe
from sdpipe.training.recipe_file import EMOJI, load_recipe
from sdpipe.training.rules import RULES


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
        ("refinement.paraphrases", None, "needs the table refinement.paraphrases"),
        ("refinement.typos.alpha", 1.5, "is not from 0 to 1"),
        ("refinement.joint_paraphrases.paraphrases", -1, "is less than 0"),
        ("refinement.joint_paraphrases.distillation_weight", -0.5, "is less than 0"),
        ("refinement.hard_negatives.paraphrases", 0, "needs refinement.hard_negatives.paraphrases"),
        ("refinement.hard_negatives.hard_fraction", 1.5, "is not from 0 to 1"),
        ("refinement.hard_negatives.contrastive_weight", -1.0, "is less than 0"),
        ("refinement.hard_negatives.negative_timestep_exponent", 0.0, "is not above 0"),
    ],
)
def test_wrong_numbers_are_refused(name, number, rule):
    def changed(table, path):
        key, *rest = path
        value = changed(getattr(table, key), rest) if rest else number
        return dataclasses.replace(table, **{key: value})

    recipe = changed(load_recipe(EMOJI), name.split("."))
    with raises(UsageError, value=name.partition(".")[0], rule=rule):
        adjust_recipe(recipe)


@pytest.mark.parametrize(("size", "remedy"), [(100, "96 or 128"), (8, "32")])
def test_a_size_that_the_networks_cannot_take_is_refused(size, remedy):
    with raises(UsageError, value=f"dim={size}", rule="multiple of 32", remedy=remedy):
        adjust_recipe(load_recipe(EMOJI), size=size)


def test_every_rule_is_of_a_number_that_recipes_have():
    numbers = load_recipe(EMOJI).numbers()
    assert not RULES.keys() - {*numbers, *(name.rpartition(".")[2] for name in numbers)}
