"""Wrong usage of `train` is refused before anything is written or torch is imported."""

import pytest
from support.errors import raises

from sdpipe import UsageError
from sdpipe.training.job import plan_job


@pytest.mark.parametrize(
    ("arguments", "value", "rule"),
    [
        ({}, "the training target", "is missing"),
        ({"target": "emoji", "data": "x"}, "data='x'", "does not go with"),
        ({"target": "cats"}, "'cats'", "is not a training target"),
        ({"target": "emoji", "start": "emoji"}, "from='emoji'", "needs images"),
        ({"data": "x"}, "the folder for the model", "is missing"),
        ({"data": "x", "out": "y", "dim": 100}, "dim=100", "multiple of 8"),
        ({"data": "x", "out": "y", "dim": 72}, "dim=72", "multiple of 32"),
        ({"data": "x", "out": "y", "steps": 0}, "steps=0", "less than 1"),
        ({"data": "x", "out": "y", "seed": -1}, "seed=-1", ""),
        ({"data": "x", "out": "y", "device": "tpu"}, "device='tpu'", ""),
        ({"data": "x", "out": "y", "recipe": "none.toml"}, "none.toml", "cannot be read"),
        ({"data": "x", "out": "y"}, "data='x'", "is not a folder"),
    ],
)
def test_wrong_usage_is_refused(tmp_path, monkeypatch, arguments, value, rule):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    paths = {"data", "out", "recipe"} & arguments.keys()
    with raises(UsageError) as info:
        plan_job(**{**arguments, **{name: Path(arguments[name]) for name in paths}})
    assert value in str(info.value)
    assert rule in str(info.value)
    assert not list(tmp_path.iterdir())


def test_the_built_in_model_needs_scenes(material, tmp_path):
    text = (material / "recipe.toml").read_text()
    start, end = text.index("[scenes]"), text.index("[tokenizer]")
    (tmp_path / "recipe.toml").write_text(text[:start] + text[end:])
    with raises(UsageError, value="recipe.toml", rule="has no table scenes"):
        plan_job("emoji", recipe=tmp_path / "recipe.toml", out=tmp_path / "out")


def test_a_folder_is_trained_with_its_own_recipe(material):
    job = plan_job(data=material / "data", out=material / "new", steps=100)
    assert [entry.text for entry in job.entries] == [
        f"a {colour} square" for colour in ("red", "blue", "green")
    ]
    assert job.recipe_path.name == "imagefolder.toml"
    assert job.recipe.unet.steps == 100
