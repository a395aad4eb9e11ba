"""The benchmark of speed: its turns, statistics and table, and one row of it to its end."""

import importlib
import json
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from measure import (
    AVX512,
    BEGIN,
    END,
    Measured,
    Row,
    entry,
    interleave,
    quartiles,
    save,
    turns,
    write_table,
)
from support.tiny import tiny_model

from sdpipe import Pipeline

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def speed(*arguments):
    script = [sys.executable, str(BENCHMARKS / "speed.py"), *arguments]
    return subprocess.run(script, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_script_finds_what_it_imports(name):
    importlib.import_module(name)


def test_two_measurements_take_turns_and_a_drift_meets_both_alike():
    clock, calls = iter(range(100)), []

    def measurement(name):
        def measure():
            calls.append(name)
            return next(clock)

        return measure

    ours, theirs = interleave(measurement("a"), measurement("b"), 4, warm_up=2)
    assert "".join(calls) == "abab" + "abba" * 2
    assert len(ours) == len(theirs) == 4
    assert sum(ours) == sum(theirs)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 50])
def test_the_quartiles_are_numpys(count):
    values = np.random.default_rng(count).exponential(size=count)
    assert quartiles(list(values)) == pytest.approx(np.percentile(values, [25, 50, 75]))


def row(figure, target=2.0):
    return Row("a question", lambda bench: None, target, figure)


@pytest.mark.parametrize(
    ("figure", "measured", "spread"),
    [
        ("times", 4.0, [3.0, 4.5]),  # of 2 / 1, 16 / 4, 10 / 2
        ("share", 0.25, [0.225, 0.375]),
        ("alone", 2.0, [1.5, 3.0]),
    ],
)
def test_a_figure_is_that_of_each_pair(figure, measured, spread):
    found = entry(row(figure), Measured("s", [1.0, 4.0, 2.0], [2.0, 16.0, 10.0]))
    assert found["measured"] == measured
    assert found["quartiles"] == spread
    assert found["count"] == 3
    assert found["versions"]["diffusers"]
    assert found["machine"]["cores"] >= 1


def test_the_exact_coefficients_of_even_steps_are_those_of_adams_and_bashforth():
    from speed_cpu import exact_coefficients, largest_difference

    rows = exact_coefficients([0.0, 1.0, 2.0, 3.0, 4.0], 4)
    assert rows[0] == [1]
    assert rows[1] == [Fraction(3, 2), Fraction(-1, 2)]
    assert rows[3] == [Fraction(n, 24) for n in (55, -59, 37, -9)]
    near = [[float(c) for c in row] for row in rows]
    near[2][1] += 0.25
    assert largest_difference(near, rows) == pytest.approx(0.25)


@pytest.mark.filterwarnings("ignore:the latents grew to")  # random weights
def test_steps_are_taken_in_turn_with_those_of_diffusers_own_pipeline(tmp_path):
    from speed_cpu import interleave_steps
    from speed_setup import diffusers_pipeline

    folder, order = tiny_model(tmp_path), []
    theirs = diffusers_pipeline(folder)
    theirs.unet.register_forward_pre_hook(lambda *_: order.append(1))

    def ours():
        for step in Pipeline(folder, device="cpu").stream("a cat", seed=0, steps=5):
            order.append(0)
            yield step

    found = interleave_steps(ours(), theirs, 32, 4)
    assert order == [1, 0, *turns(4)]  # the first two do not count
    assert [len(times) for times in found] == [4, 4]
    assert min(min(times) for times in found) > 0


def made_up(measured, **changes):
    return {
        "figure": "times",
        "measured": measured,
        "quartiles": [measured - 1, measured + 1],
        "count": 3,
        "unit": "s",
        "sdpipe": [1.0, 2.0, 9.0],
        "other": [10.0, 20.0, 30.0],
        "dtype": "float16",
        "note": "",
        "machine": {
            "cpu": "Abacus",
            "cores": 2,
            "threads": 1,
            "instruction_sets": ["avx2"],
            "gpu": None,
        },
        "versions": {"sdpipe": "9.8", "torch": "7.6"},
        **changes,
    }


def test_the_table_goes_between_the_markers_in_the_order_of_the_rows(tmp_path):
    page, path = tmp_path / "README.md", tmp_path / "speed.json"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    rows = {"fast": row("times"), "small": row("share", 0.8), "curve": row("alone", None)}
    save(path, "small", {"not_measured": "no GPU"})
    save(path, "fast", {"not_measured": "no AMX"})
    save(path, "fast" + AVX512, made_up(5.25, note="bit-identical"))
    save(path, "gone", made_up(1.0))
    write_table(page, rows, json.loads(path.read_text()))
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| row |")
    assert text.endswith(f"{END}\nafter\n")
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| fast",
        f"| fast{AVX512}",
        "| small",
        "| curve",
    ]
    assert "| ≥ 2x | not measured: no AMX |" in lines[0]
    assert (
        "| ≥ 2x | 5.25x | 4.25 to 6.25 | 3 | 2 s | 20 s | float16 | bit-identical | a |" in lines[1]
    )
    assert "| ≤ 0.8x | not measured: no GPU |" in lines[2]
    assert "| - | not measured: not yet |" in lines[3]
    assert {line.count("|") for line in lines} == {12}
    assert "a: Abacus, 2 cores (avx2), 1 used; no GPU; sdpipe 9.8, torch 7.6" in text


@pytest.mark.slow
def test_a_quick_row_runs_to_its_end_and_writes_nothing():
    from speed import PAGE, RESULTS

    files = [RESULTS, PAGE]
    before = [file.read_bytes() if file.exists() else None for file in files]
    done = speed("--quick", "--only", "coefficients")
    assert done.returncode == 0, done.stderr
    row, last = done.stdout.splitlines()
    assert row.startswith("coefficients: ")
    assert "count 2" in row
    error = float(row.partition("largest error ")[2].split(",")[0])
    assert 0 < error < 1e-14
    assert "nothing was written" in last
    assert [file.read_bytes() if file.exists() else None for file in files] == before


def test_a_quick_row_draws_with_both_pipelines(tmp_path):
    from speed import measure_here

    with warnings.catch_warnings():
        assert measure_here("host-time", True, tmp_path) == 0
    key, found = json.loads((tmp_path / "found.json").read_text())
    assert key == "host-time"
    assert (found["count"], found["figure"]) == (2, "times")
