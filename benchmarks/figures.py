"""Writes the tables of the results into README.md: `make figures`.

Measures nothing: the other scripts do. A test holds what is published against the results.
"""

import json
from pathlib import Path

import approximate
import batch
import prompt_accuracy
import speed
from measure import put_between, read, table, write_table

import sdpipe
from sdpipe.training.recipe_file import load_recipe

MODEL = Path(sdpipe.__file__).parent / "models" / "emoji"


def write_tables(page: Path) -> None:
    """Puts the tables of speed.json, batch.json and approximate.json into a page."""
    write_table(page, speed.ROWS, read(speed.RESULTS))
    put_between(page, batch.BEGIN, batch.END, table(batch.ROWS, read(batch.FIGURES)))
    approximations = approximate.table(read(approximate.RESULTS))
    put_between(page, approximate.BEGIN, approximate.END, approximations)


def stale_figures(scratch: Path) -> list[str]:
    """What is published and is not of these results, this model and its recipe."""
    copy = scratch / "README.md"
    copy.write_bytes(speed.PAGE.read_bytes())
    write_tables(copy)
    figures = read(Path(prompt_accuracy.__file__).with_suffix(".json"))
    defaults = json.loads((MODEL / "sdpipe.json").read_text(encoding="utf-8"))
    curve, recipe = figures["parts"]["guidance"], load_recipe().sampling
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    checks = {
        "the tables of benchmarks/README.md: run make figures": copy.read_bytes()
        == speed.PAGE.read_bytes(),
        "prompt_accuracy.json is of other weights": figures["model"]["sha256"]
        == prompt_accuracy.weights(MODEL),
        "g is not where most images are right": curve[f"{defaults['g']:g}"]["all"]
        == max(curve[f"{g:g}"]["all"] for g in prompt_accuracy.CURVE),
        "prompt_accuracy.json was measured at another g": figures["parts"]["glyph"]["g"]
        == defaults["g"],
        "the table of the model card": prompt_accuracy.table(figures) in card,
        "the recipe asks for other settings than sdpipe.json": recipe.items() <= defaults.items(),
    }
    return [name for name, fresh in checks.items() if not fresh]


if __name__ == "__main__":
    write_tables(speed.PAGE)
    print(speed.PAGE)
