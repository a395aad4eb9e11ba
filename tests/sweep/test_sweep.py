"""What a sweep draws: its cells, its batches, its command."""

import json
import re
import shlex
import sys
import time

import pytest
from PIL import Image
from support.errors import raises

from sdpipe.errors import SdpipeError, UsageError
from sdpipe.io import png
from sdpipe.metadata.read import read_record
from sdpipe.metadata.record import Record
from sdpipe.settings import Settings
from sdpipe.sweep.command import sweep_command
from sdpipe.sweep.sweep import Sweep


def test_cells_are_every_combination_row_by_row():
    plan = Sweep("x", steps=[10, 20], g=[1, 3, 7.5], karras=True, seed=4)
    assert [axis.name for axis in plan.axes] == ["steps", "g"]
    assert [(c.settings.steps, c.settings.g) for c in plan.cells] == [
        (steps, g) for g in (1, 3, 7.5) for steps in (10, 20)
    ]
    assert plan.cells[3].index == (1, 1)
    assert plan.cells[3].settings == Settings(prompt="x", steps=20, g=3, karras=True, seed=4)
    assert plan.cells[3].name == "steps=20-g=3"


@pytest.mark.parametrize(
    ("prompt", "drawn"),
    [
        ("a {cat|dog} on {sand|snow}", ["a cat on sand", "a dog on sand", "a cat on snow"]),
        ("{red apple | blue cat}", ["red apple", "blue cat"]),
        ("a {|big} cat", ["a cat", "a big cat"]),
        ("cat{|, old}", ["cat", "cat, old"]),
        ("{x} {y} {a|b}", ["{x} {y} a", "{x} {y} b"]),
        ("a | b } {a|b|c}", None),
        ("  spaced {a|b}", ["  spaced a", "  spaced b"]),
    ],
)
def test_parts_of_a_prompt(prompt, drawn):
    if drawn is None:
        with pytest.raises(UsageError, match="open at one end"):
            Sweep(prompt)
    else:
        assert [c.settings.prompt for c in Sweep(prompt).cells][: len(drawn)] == drawn


def test_a_negative_prompt_has_parts_too_and_the_prompt_s_go_first():
    plan = Sweep("{a|b}", seed=[1, 2], negative_prompt="{|dark}, grainy")
    assert [axis.name for axis in plan.axes] == ["prompt", "negative_prompt", "seed"]
    assert {c.settings.negative_prompt for c in plan.cells} == {", grainy", "dark, grainy"}


def test_what_is_given_twice_is_drawn_once_with_a_word():
    plan = Sweep("{a|b|a}", g=[1, 7.5, 1.0])
    assert len(plan.cells) == 4
    assert [remark.split(" ")[0] for remark in plan.notes] == ["g", "{a|b|a}"]


def test_no_name_of_a_cell_is_a_numbered_twin_of_another():
    plan = Sweep("{apollo 11|apollo 12|1|2|-1||nothing!}", g=[-3, -4, 1e-7])
    names = [cell.name for cell in plan.cells]
    assert not any(re.search(r"-\d+$", name) for name in names)
    assert all(re.fullmatch(r"[\w.=+-]+", name) for name in names)


def test_a_sweep_survives_json_and_its_command():
    plan = Sweep(
        "-a 'b' {c|$d}",
        g=[1.5, -2],
        seed=range(3, 9),
        negative_prompt="x",
        batch_invariant=True,
        karras=True,
    )
    again = Sweep.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again.cells == plan.cells
    words = shlex.split(plan.command(model="m/n"))
    assert words[:2] == ["sdpipe", "sweep"]
    assert words[-2:] == ["--", plan.prompt]
    assert " ".join(words[2:-2]) == (
        "--g 1.5,-2 --seed 3-8 --negative-prompt x --batch-invariant --karras yes --model m/n"
    )


@pytest.mark.parametrize(
    ("values", "value", "rule"),
    [
        ({"g": [3]}, "the sweep", "nothing varies"),
        ({"seed": range(500), "g": [1, 2, 3]}, "500 x 3 = 1500 images", "1000"),
        (
            {name: [8, 16] for name in ("g", "steps", "seed", "dim")},
            "4 axes (g, steps, seed, dim)",
            "more than the 3",
        ),
        ({"seed": range(10**12)}, "1000000000000 images", "1000"),
        ({"steps": [10, 0]}, "steps=0", "out of range"),
        ({"dim": [64, 65]}, "dim=65", "multiple of 8"),
        ({"scheduler": ["lms", "ddim"], "karras": True}, "'ddim'", "no Karras noise levels"),
        ({"n": [1, 2]}, "'n'", "not one of a sweep"),
        ({"batch_invariant": [True, False]}, "batch_invariant", "has 2 values"),
        ({"g": [None, 3]}, "g=None", "neither a number nor text"),
        ({"g": []}, "g=[]", "no value"),
    ],
)
def test_wrong_sweeps_are_refused(values, value, rule):
    with raises(UsageError, value=value, rule=rule):
        Sweep("x", **values)


RESOLVED = {"steps": 9, "g": 2.0, "width": 512, "height": 512, "scheduler": "ddim"}


@pytest.mark.parametrize(
    "told",
    [
        *({"self": 1}, {"prompt": 3}, {"prompt": "x"}, {"prompt": "x", "g": [[1], 2]}),
        {"prompt": "x", "seed": list(range(5000))},
        {"prompt": "{" + "|" * 60000, "g": [1, 2]},
        {"prompt": "{a|b}" * 12000},
        {"prompt": "x" * 70000, "g": [1, 2]},
        {"prompt": "x", "g": {"a": 1}},
        {"prompt": "x", "karras": ["a", "b"]},
    ],
)
def test_a_grid_from_anybody_that_makes_no_sense_is_refused_at_once(told, tmp_path):
    path = tmp_path / "grid.png"
    notes = {"parameters": "x", "sdpipe": {"sweep": told}}
    png.save(Image.new("RGB", (8, 8)), path, notes)
    started = time.process_time()
    with pytest.raises(SdpipeError, match="makes no sense"):
        sweep_command(path, read_record(path))
    assert time.process_time() - started < 5


def test_a_grid_s_command_takes_no_cells():
    """Counted are the calls of functions; a prompt of a stranger may be read once, not for each."""

    def calls(seeds):
        prompt = "(a)" * 1000 + f"[{len(seeds)}]"  # no other run has read it
        record = Record(source="sdpipe", values={}, sweep={"prompt": prompt, "seed": seeds})
        count = 0

        def note(_frame, event, _argument):
            nonlocal count
            count += event == "call"

        sys.setprofile(note)
        try:
            command = sweep_command("x.png", record)
        finally:
            sys.setprofile(None)
        assert shlex.split(command)[2:] == [prompt, "--seed", f"0-{len(seeds) - 1}"]
        return count

    assert calls(list(range(1000))) < 3 * calls([0, 1, 2])


def test_names_that_fall_together_get_the_number_of_their_value():
    long = "a very long prompt that has more letters than a name "
    plan = Sweep(f"{{🍎|猫|cat|{long}1|{long}2}}", seed=[1, 2])
    assert [cell.name for cell in plan.cells if cell.settings.seed == 1] == [
        *("prompt=image_1-seed=1", "prompt=image_2-seed=1", "prompt=cat-seed=1"),
        "prompt=a_very_long_prompt_that_has_more_letters_4-seed=1",
        "prompt=a_very_long_prompt_that_has_more_letters_5-seed=1",
    ]
