"""Recipe files: an error names the key and the file."""

import pytest
from support.errors import raises

from sdpipe import UsageError
from sdpipe.training.recipe_file import EMOJI, load_recipe


@pytest.mark.parametrize(
    ("old", "new", "value", "rule"),
    [
        ("seed = 20240407", "", "seed in the recipe", "is missing"),
        ("seed = 20240407", "seed = 1\nsede = 2", "sede in the recipe", "is not a key"),
        ("seed = 20240407", "seed = 'x'", "seed = 'x' in the recipe", "is not of type int"),
        (
            "caption_dropout = 0.1 ",
            "caption_dropout = true ",
            "unet.caption_dropout = True",
            "float",
        ),
        ("[refinement.typos]", "[refinement.tpyos]", "refinement.tpyos", "is not a key"),
        ("alpha = 0.6", "alpha = []", "refinement.typos.alpha = []", "is not of type float"),
        ("[vae]", "[vae", "the recipe", "is not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_by_key(tmp_path, old, new, value, rule):
    path = tmp_path / "recipe.toml"
    text = EMOJI.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with raises(UsageError, value=value, rule=rule) as info:
        load_recipe(path)
    assert str(path) in info.value.value


def test_a_missing_recipe_is_refused(tmp_path):
    with raises(UsageError, value="none.toml", rule="cannot be read"):
        load_recipe(tmp_path / "none.toml")
