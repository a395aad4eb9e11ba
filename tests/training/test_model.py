"""The model of a run: what cannot be built or trained further is refused."""

import json

import pytest
import torch
from support.errors import raises
from support.training_run import recipe_with

from sdpipe import ModelError, UsageError
from sdpipe.training.model import load_model, new_model
from sdpipe.training.recipe_file import load_recipe

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "changes",
    [{"vae": {"norm_num_groups": 3}}, {"text_encoder": {"num_attention_heads": 3}}],
)
def test_networks_that_cannot_be_built_are_refused(tmp_path, changes):
    recipe = load_recipe(recipe_with(tmp_path / "recipe.toml", **changes))
    with raises(UsageError, value="the recipe", rule="has networks that cannot be built: "):
        new_model(recipe, ["a red square"])


def test_a_model_of_another_training_is_refused(start, tmp_path):
    recipe = load_recipe(recipe_with(tmp_path / "recipe.toml"))

    def load(dim=None):
        return load_model(str(start), recipe, dim, CPU)

    def change(name, **values):
        path = start / name
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), **values}))
        return lambda: path.write_text(before)

    undo = change("scheduler/scheduler_config.json", prediction_type="sample")
    with raises(ModelError, value=str(start), rule="prediction_type='sample'"):
        load()
    undo()
    undo = change("scheduler/scheduler_config.json", beta_schedule="linear")
    with raises(ModelError, value=str(start), rule="noise schedule linear"):
        load()
    undo()
    undo = change("unet/config.json", addition_embed_type="text_time")
    with raises(ModelError) as info:
        load()
    assert "Stable Diffusion XL" in str(info.value)
    undo()
    with raises(UsageError, value="dim=42", rule="is not a multiple of", remedy="take 40"):
        load(dim=42)
    change("sdpipe.json", width=64)
    with raises(UsageError, rule="draws 64 x 32 pixels", remedy="--dim 32"):
        load()


def test_a_model_keeps_its_forward_process_and_size(start, tmp_path):
    recipe = load_recipe(recipe_with(tmp_path / "recipe.toml", size=64))
    path = start / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": 0.02}))
    model, adapted, revision = load_model(str(start), recipe, None, CPU)
    assert (adapted.size, adapted.unet.beta_end) == (32, 0.02)
    assert adapted.unet.prediction_type == "epsilon"
    assert model.scheduler_config["_class_name"] == "PNDMScheduler"
    assert revision
    _, adapted, _ = load_model(str(start), recipe, 48, CPU)
    assert adapted.size == 48
