"""What is published about the built-in model is about the one that is shipped."""

import json
from pathlib import Path

import pytest
from prompt_accuracy import CURVE, table, weights

import sdpipe
from sdpipe.training.recipe import load_recipe

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MODEL = Path(sdpipe.__file__).parent / "models" / "emoji"


@pytest.fixture(scope="module")
def figures():
    return json.loads((BENCHMARKS / "prompt_accuracy.json").read_text())


def test_figures_are_of_these_weights(figures):
    assert figures["model"]["sha256"] == weights(MODEL)


def test_g_is_where_the_pictures_are_right_most_often(figures):
    g = json.loads((MODEL / "sdpipe.json").read_text())["g"]
    curve = figures["parts"]["guidance"]
    assert curve[f"{g:g}"]["all"] == max(curve[f"{point:g}"]["all"] for point in CURVE)
    assert figures["parts"]["glyph"]["g"] == g  # what most other figures are measured at


def test_the_card_has_the_table_of_these_figures(figures):
    assert table(figures) in (MODEL / "README.md").read_text(encoding="utf-8")


def test_recipe_asks_for_what_is_shipped():
    shipped = json.loads((MODEL / "sdpipe.json").read_text())
    asked = load_recipe().sampling
    assert {name: shipped[name] for name in asked} == asked
