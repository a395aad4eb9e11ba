"""What is published about the built-in model is about the one that is shipped."""

import json
import sys
from pathlib import Path

import pytest

import sdpipe
from sdpipe.loading.weight_files import sha256
from sdpipe.training.recipe import load_recipe

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from prompt_accuracy import table  # noqa: E402

MODEL = Path(sdpipe.__file__).parent / "models" / "emoji"


@pytest.fixture(scope="module")
def figures():
    return json.loads((BENCHMARKS / "prompt_accuracy.json").read_text())


def test_figures_are_of_these_weights(figures):
    shipped = {p.relative_to(MODEL).as_posix(): sha256(p) for p in MODEL.rglob("*.safetensors")}
    assert figures["model"]["sha256"] == shipped


def test_g_is_where_the_pictures_are_right_most_often(figures):
    g = json.loads((MODEL / "sdpipe.json").read_text())["g"]
    curve = figures["parts"]["guidance"]
    best = max(point["all"] for name, point in curve.items() if name not in ("best at", "seconds"))
    assert curve[f"{g:g}"]["all"] == best
    assert figures["parts"]["glyph"]["g"] == g  # what most other figures are measured at


def test_the_card_has_the_table_of_these_figures(figures):
    assert table(figures) in (MODEL / "README.md").read_text(encoding="utf-8")


def test_recipe_asks_for_what_is_shipped():
    shipped = json.loads((MODEL / "sdpipe.json").read_text())
    asked = load_recipe().sampling
    assert {name: shipped[name] for name in asked} == asked
