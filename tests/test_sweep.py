import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from tiny import tiny_model

import sdpipe.pipeline
from sdpipe import png
from sdpipe.errors import SdpipeError, SdpipeWarning, UsageError
from sdpipe.grid import LARGEST, LARGEST_SIDE, grid
from sdpipe.pixels import load_pixels, pixels_sha256
from sdpipe.reading import read_record
from sdpipe.settings import Settings
from sdpipe.sweep import BATCH_PIXELS, Sweep, batches

# A model of random weights diverges under lms, and a warning says so; under ddim it cannot.
FAST = ["--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [str(tiny_model(folder / str(seed), seed=seed)) for seed in (0, 1)]


@pytest.fixture
def sweep(run, models):
    """Runs a sweep on the first model, and returns its JSON and what it said."""

    def sweep(prompt, *arguments, model=models[0], status=0):
        common = ["--model", model, "--scheduler", "ddim", *FAST]
        if "--scheduler" in arguments:
            common[2:4] = []
        got, out, err = run("sweep", prompt, *arguments, *common, "--json")
        assert got == status, err
        return json.loads(out), err

    return sweep


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_cells_are_every_combination_row_by_row():
    plan = Sweep("x", steps=[10, 20], g=[1, 3, 7.5], karras=True, seed=4)
    assert [axis.name for axis in plan.axes] == ["steps", "g"]
    assert [(c.settings.steps, c.settings.g) for c in plan.cells] == [
        (steps, g) for g in (1, 3, 7.5) for steps in (10, 20)
    ]
    assert plan.cells[3].place == (1, 1)
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
    assert [remark.split(" ")[0] for remark in plan.remarks] == ["g", "{a|b|a}"]


def test_no_name_of_a_cell_is_a_numbered_twin_of_another():
    plan = Sweep("{apollo 11|apollo 12|1|2|-1||nothing!}", g=[-3, -4, 1e-7])
    names = [cell.name for cell in plan.cells]
    assert not any(re.search(r"-\d+$", name) for name in names)
    assert all(re.fullmatch(r"[\w.=+-]+", name) for name in names)


def test_a_sweep_survives_json_and_its_command():
    plan = Sweep(
        "-a 'b' {c|$d}", g=[1.5, -2], seed=range(3, 9), negative_prompt="x", exact=True, karras=True
    )
    again = Sweep.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again.cells == plan.cells
    words = shlex.split(plan.command(model="m/n"))
    assert words[:2] == ["sdpipe", "sweep"]
    assert words[-2:] == ["--", plan.prompt]
    assert " ".join(words[2:-2]) == (
        "--g 1.5,-2 --seed 3-8 --negative x --exact --karras yes --model m/n"
    )


WRONG_SWEEPS = {
    "nothing varies": {"g": [3]},
    "500 x 3 = 1500 pictures": {"seed": range(500), "g": [1, 2, 3]},
    "4 things vary (g, steps, seed, dim)": {
        name: [8, 16] for name in ("g", "steps", "seed", "dim")
    },
    "1000000000000 pictures": {"seed": range(10**12)},
    "steps=0 is out of range": {"steps": [10, 0]},
    "dim=65 is not a multiple of 8": {"dim": [64, 65]},
    "no Karras noise levels": {"scheduler": ["lms", "ddim"], "karras": True},
    "unknown setting 'n'": {"n": [1, 2]},
    "takes one": {"exact": [True, False]},
    "neither a number nor a text": {"g": [None, 3]},
    "is an empty list": {"g": []},
}


@pytest.mark.parametrize("message", WRONG_SWEEPS)
def test_what_is_no_sweep_is_told(message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Sweep("x", **WRONG_SWEEPS[message])


RESOLVED = {"steps": 9, "g": 2.0, "width": 512, "height": 512, "scheduler": "ddim"}


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), unique=True, max_size=40),
    st.integers(1, 9),
    st.sampled_from([8, 512, 1024, 4096]),
)
def test_a_batch_differs_in_nothing_but_seeds_in_a_row(drawn, most, side):
    values = {**RESOLVED, "width": side}
    settings = [Settings(prompt=prompt, seed=seed, **values) for prompt, seed in drawn]
    found = batches(settings, most)
    assert sorted(i for batch in found for i in batch) == list(range(len(settings)))
    for batch in found:
        assert len(batch) <= most
        assert len(batch) == 1 or len(batch) * side * 512 <= BATCH_PIXELS
        for i, j in pairwise(batch):
            assert settings[i].prompt == settings[j].prompt
            assert settings[i].seed + 1 == settings[j].seed
    if most >= 8 and side <= 512:  # and none that could be one are two, but for the bound
        ends = [(settings[b[-1]], settings[c[0]], len(b)) for b in found for c in found]
        assert not any(
            a.prompt == b.prompt and a.seed + 1 == b.seed and size < min(most, 8)
            for a, b, size in ends
            if side == 512
        )


def colour(place):
    return tuple((90 + 37 * (i + 1) * (k + 1)) % 200 for i, k in enumerate((*place, 0, 0, 0)[:3]))


GRIDS = {
    "two": (Sweep("x", g=[1, 3, 7.5], steps=[10, 20]), (128, 128)),
    "three": (Sweep("x", g=[1, 3], steps=[10, 20], seed=range(5)), (64, 128)),
    "row": (Sweep("x", scheduler=["lms", "ddim", "euler_a"]), (128, 64)),
    "rows": (Sweep("x", seed=range(23)), (32, 32)),
    "sizes": (Sweep("x", dim=[64, 128], g=[1, 2]), (128, 128)),
    "many": (Sweep("x", g=[1, 2], seed=range(40)), (512, 512)),
    "long": (
        Sweep("{a long name of many words and inseparabilities|b} {c|c c c c c c c c}"),
        (8, 8),
    ),
    "signs": (Sweep("{猫|é}", g=[1, 2]), (128, 128)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_picture_is_in_its_place_and_every_text_can_be_read(name, monkeypatch):
    plan, size = GRIDS[name]
    texts, places, write = [], {}, ImageDraw.ImageDraw.text
    paste = Image.Image.paste

    def noting(self, xy, text, *arguments, **options):
        box = self.textbbox(xy, text, font=arguments[1], anchor=options.get("anchor"))
        texts.append((text, *box))
        write(self, xy, text, *arguments, **options)

    def placing(self, image, box):
        places[asked[-1]] = (*box, box[0] + image.width, box[1] + image.height)
        paste(self, image, box)

    asked = []

    def picture(place):
        asked.append(place)
        return Image.new("RGB", size, colour(place))

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noting)
    monkeypatch.setattr(Image.Image, "paste", placing)
    sheet = grid(plan.axes, size, picture, "a title", "what is the same")
    assert sorted(asked) == sorted(cell.place for cell in plan.cells)
    assert sheet.width * sheet.height <= LARGEST * 1.1
    assert max(sheet.size) <= LARGEST_SIDE * 1.1

    for place, (left, top, right, bottom) in places.items():
        assert sheet.getpixel(((left + right) // 2, (top + bottom) // 2)) == colour(place)
        assert (right - left) * size[1] == pytest.approx((bottom - top) * size[0], abs=size[1])
    if len(plan.axes) > 1:
        for a, b in combinations(places, 2):
            if a[1:] == b[1:]:
                assert (places[a][0] < places[b][0]) == (a[0] < b[0])
                assert places[a][1] == places[b][1]
            elif a[::2] == b[::2]:
                assert (places[a][1] < places[b][1]) == (a[1] < b[1])

    boxes = [(text, *box) for text, *box in texts if text]
    assert {"a title", "what is the same"} <= {text for text, *_ in boxes}
    boxes += [("", *box) for box in places.values()]
    for _, left, top, right, bottom in boxes:
        assert 0 <= left <= right <= sheet.width
        assert 0 <= top <= bottom <= sheet.height
    boxes.sort(key=lambda box: box[2])
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            if b[2] >= a[4]:
                break
            assert a[3] <= b[1] or b[3] <= a[1] or a[2] == a[4], (a, b)


def test_the_grid_names_what_the_font_cannot_write(monkeypatch):
    written, write = [], ImageDraw.ImageDraw.text

    def noting(self, xy, text, *arguments, **options):
        written.append(text)
        write(self, xy, text, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noting)
    grid(Sweep("{猫|é}").axes, (64, 64), lambda place: None)
    assert written == ["no. 1", "e", "none", "none"]


def test_every_cell_is_the_picture_that_the_library_draws(sweep, models):
    told, err = sweep("a {cat|dog}", "--seed", "3-5", "--steps", "3,4", "--g", "1", "--out", "o")
    assert re.search(r"sdpipe: 12 pictures: 12 drawn in \d+\.\d s\n$", err)
    pipe = sdpipe.pipeline.Pipeline(models[0], device="cpu", dtype="float32")
    assert len(told["cells"]) == 12
    for cell in told["cells"]:
        record = read_record(cell["path"])
        assert (record.n, record.index) == (3, cell["settings"]["seed"] - 3)
        assert dict(record.values) == cell["settings"]
        animal, seed, steps = ("cat", "dog"), (3, 4, 5), (3, 4)
        x, y, z = cell["place"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SdpipeWarning)  # random weights draw no picture
            result = pipe.generate(
                f"a {animal[x]}", seed=3, n=3, steps=steps[z], g=1, scheduler="ddim"
            )
        assert cell["settings"] == result.settings[y].to_dict()
        assert seed[y] == cell["settings"]["seed"]
        assert pixels_sha256(load_pixels(cell["path"])) == pixels_sha256(result.images[y])


def test_a_cell_is_replayed_to_the_same_bits(run, sweep, models):
    told, _ = sweep("red apple", "--seed", "1-3", "--steps", "3", "--karras", "no")
    assert told["grid"] == "outputs/sweep-red-apple-by-seed/grid.png"
    for cell in told["cells"]:
        status, out, err = run("replay", cell["path"], "--verify", "--model", models[0])
        assert (status, out) == (0, "identical\n"), err


def test_the_first_that_was_typed_goes_across(sweep):
    told, _ = sweep("red {apple|cat}", "--steps", "2,3", "--g", "1", "--seed", "1,5", "--out", "o")
    assert list(told["sweep"])[:4] == ["prompt", "steps", "g", "seed"]
    assert [tuple(cell["place"]) for cell in told["cells"]][-1] == (1, 1, 1)
    assert told["cells"][2]["settings"]["steps"] == 3


def test_what_is_there_is_not_drawn_again_and_more_values_only_add(sweep):
    more = ["--steps", "2,3", "--g", "1", "--out", "o"]
    first, _ = sweep("red apple", "--seed", "1-2", *more)
    before = contents("o")
    again, err = sweep("red apple", "--seed", "1-2", *more)
    assert err == "sdpipe: 4 pictures: 4 there before\n"
    assert contents("o") == before
    assert again["grid"] == first["grid"] == "o/grid.png"
    wider, err = sweep("red apple", "--seed", "1-3", *more)
    assert err.startswith("sdpipe: 4 of 6 pictures are there already.\n")
    assert [cell["drawn"] for cell in wider["cells"]] == [False, False, True] * 2
    assert wider["grid"] == "o/grid-1.png"
    assert contents("o").items() > before.items()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar_while_there_is_something_to_draw(run, models, monkeypatch):
    def shown():
        monkeypatch.setattr(sys, "stderr", Terminal())
        command = ["sweep", "red apple", "--seed", "1-2", "--steps", "2,3", "--out", "o"]
        assert run(*command, "--model", models[0], "--scheduler", "ddim", *FAST)[0] == 0
        return sys.stderr.getvalue()

    first = shown()
    assert "\rdrawing 4 pictures ..." in first
    assert "drawing 4 pictures: 100%" in first
    assert ": 0it [" not in first
    assert re.fullmatch(
        r"putting the grid together \.\.\.\r\x1b\[Ksdpipe: 4 pictures: 4 drawn in \S+ s",
        first.split("\n")[-2],
    )
    again = shown()
    assert "drawing" not in again
    assert again.count("\n") == 1
    assert again.endswith("\x1b[Ksdpipe: 4 pictures: 4 there before\n")


def test_a_file_counts_only_where_it_is_the_cell(sweep):
    arguments = ["red apple", "--seed", "1-5", "--steps", "2", "--out", "o"]
    told, _ = sweep(*arguments)
    paths = [Path(cell["path"]) for cell in told["cells"]]
    good = [path.read_bytes() for path in paths]
    paths[0].unlink()
    paths[1].write_text("a letter")
    with Image.open(paths[2]) as image:
        texts = png.PngInfo()
        for key, text in image.info.items():
            texts.add_text(key, text)
        image.convert("L").save(paths[2], pnginfo=texts)
    paths[3].unlink()
    paths[3].write_bytes(good[4])  # another cell of the same sweep, under its name
    mine = contents("o")
    again, err = sweep(*arguments)
    assert "o/seed=2.png is no picture of sdpipe's (and so on: 2 files); what is there stays" in err
    assert [cell["drawn"] for cell in again["cells"]] == [True, True, True, True, False]
    names = ["seed=1", "seed=2-1", "seed=3-1", "seed=4-1", "seed=5"]
    assert [cell["path"] for cell in again["cells"]] == [f"o/{name}.png" for name in names]
    assert contents("o").items() > mine.items()
    for cell, picture in zip(again["cells"], good, strict=True):
        found = read_record(cell["path"])
        assert found.pixels_sha256 == pixels_sha256(load_pixels(cell["path"]))
        assert found.values["seed"] == cell["settings"]["seed"]
        if cell["drawn"] is False:
            assert Path(cell["path"]).read_bytes() == picture
    assert sweep(*arguments)[0]["cells"] == [{**cell, "drawn": False} for cell in again["cells"]]


def test_another_model_s_pictures_stay(sweep, models):
    arguments = ["red apple", "--seed", "1-2", "--steps", "2", "--out", "o"]
    sweep(*arguments)
    before = contents("o")
    told, err = sweep(*arguments, model=models[1])
    assert "o/seed=1.png was drawn by other weights (" in err
    assert [cell["path"] for cell in told["cells"]] == ["o/seed=1-1.png", "o/seed=2-1.png"]
    assert told["grid"] == "o/grid-1.png"
    assert contents("o").items() > before.items()


def test_a_seed_that_was_drawn_is_the_same_the_next_time(sweep):
    arguments = ["red apple", "--g", "1,2", "--steps", "2"]
    told, _ = sweep(*arguments)
    seeds = {cell["settings"]["seed"] for cell in told["cells"]}
    assert len(seeds) == 1
    Path(told["cells"][0]["path"]).unlink()
    again, _ = sweep(*arguments)
    assert {cell["settings"]["seed"] for cell in again["cells"]} == seeds
    elsewhere, _ = sweep(*arguments, "--out", "o")
    assert {cell["settings"]["seed"] for cell in elsewhere["cells"]} != seeds


def test_the_batch_is_bounded(sweep):
    told, _ = sweep("red apple", "--seed", "1-5", "--steps", "2", "--batch", "2", "--out", "o")
    shapes = [(r.n, r.index) for cell in told["cells"] if (r := read_record(cell["path"]))]
    assert shapes == [(2, 0), (2, 1), (2, 0), (2, 1), (1, 0)]


def test_what_overflows_costs_no_other_picture(sweep):
    told, err = sweep(
        *("red apple", "--g", "2,3e38", "--seed", "1-2", "--steps", "2", "--out", "o"), status=1
    )
    assert [cell["path"] for cell in told["cells"]] == [
        *("o/g=2-seed=1.png", None, "o/g=2-seed=2.png", None)
    ]
    assert len(re.findall(r"error: g=3e\+38-seed=[12]: .*NaN or infinity", err)) == 2
    assert "4 pictures: 2 drawn in" in err
    assert ", 2 without a picture\n" in err
    assert os.path.exists("o/grid.png")


def test_a_warning_for_all_cells_is_said_once(sweep):
    _, err = sweep("[red:green:90] apple", "--g", "1,2,3", "--steps", "2", "--out", "o")
    assert err.count("changes after 90 steps") == 1


def test_the_grid_tells_how_it_was_made(run, sweep, models):
    arguments = ["a {cat|dog}", "--negative", "red", "--seed", "1-2", "--steps", "2", "--out", "o"]
    told, _ = sweep(*arguments)
    status, out, _ = run("info", "o/grid.png")
    assert status == 0
    assert "a sweep of 4 pictures" in out
    assert "as they were drawn" in out
    _, out, _ = run("info", "o/grid.png", "--json")
    (found,) = json.loads(out)
    assert found["sweep"] == told["sweep"]
    assert found["sweep"]["seed"] == [1, 2]
    command = found["command"]
    status, out, err = run("replay", "o/grid.png", "--verify")
    assert (status, out) == (1, "")
    assert (
        "is the grid of a sweep, whose cells are pictures of their own. This draws them all: "
        in err
    )
    assert " ".join(command.split()) in err
    # What it says is what draws it: nothing is left to draw, and the grid is the same.
    before = contents("o")
    status, out, err = run(*shlex.split(command)[1:], "--out", "o")
    assert (status, out) == (0, "o/grid.png\n")
    assert err == "sdpipe: 4 pictures: 4 there before\n"
    assert contents("o") == before
    text = png.read("o/grid.png")["parameters"]
    assert text.startswith("a cat\nNegative prompt: red\nSteps: 2, Sampler: DDIM")
    assert text.endswith(
        'Script: X/Y/Z plot, X Type: prompt, X Values: "cat,dog", Y Type: Seed, Y Values: "1,2"'
    )


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
        read_record(path)
    assert time.process_time() - started < 5


def test_interrupted_it_goes_on_where_it_was(run, sweep, models, tmp_path):
    # In a process of its own, with a real signal.
    arguments = ["red apple", "--seed", "1-3", "--steps", "2-60", "--g", "1", "--out", "o"]
    command = [sys.executable, "-m", "sdpipe", "sweep", *arguments, "--model", models[0], *FAST]
    with subprocess.Popen(
        [*command, "--scheduler", "ddim"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(sdpipe.__file__))},
    ) as process:
        until = time.monotonic() + 300
        while len(list(tmp_path.glob("o/seed=*"))) < 7:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    err = "".join(line for line in err.splitlines(keepends=True) if "the latents grew" not in line)
    assert (process.returncode, out) == (130, "")
    before = contents("o")
    assert err == (
        f"sdpipe: {len(before)} of 177 pictures are done; the same command goes on.\n"
        "sdpipe: interrupted\n"
    )
    assert 7 <= len(before) < 177
    assert all(name.startswith("seed=") for name in before)
    told, err = sweep("red apple", "--seed", "1-3", "--steps", "2-8", *arguments[5:])
    drawn = {Path(cell["path"]).name for cell in told["cells"] if cell["drawn"]}
    assert drawn == {Path(cell["path"]).name for cell in told["cells"]} - before.keys()
    assert contents("o").items() > before.items()
    assert os.path.exists("o/grid.png")


WRONG = {
    "sweep": "PROMPT",
    "sweep x": "nothing varies",
    "sweep x --g 7.5": "nothing varies",
    "sweep x --g 1,a": "g='a' is neither a number, a pair such as 12:4 nor a range",
    "sweep x --g 1,12:": "g='12:' is neither a number, a pair such as 12:4 nor a range",
    "sweep x --g 1,inf:2": "g=inf:2 is not a finite number",
    "sweep x --g 12:4": "nothing varies",
    "sweep x --interval 0.3,5": "nothing varies",
    "sweep x --interval 0.3,5;5": "interval=5 is not two noise levels",
    "sweep x --interval 0.3,5;": "interval='' is not two noise levels",
    "sweep x --g 1,2 --safety on": "safety='on' is not known",
    "sweep x --rescale 0,2": "rescale=2.0 is out of range",
    "sweep x --g 1,nan": "g=nan is not a finite number",
    "sweep x --steps 1-5": "below sigma 0.05",
    "sweep x --steps 10,2.5": "steps='2.5' is neither a whole number",
    "sweep x --steps 10-50[0]": "how many is a whole number from 1",
    "sweep x --steps 10-50(5)": "with its sign",
    "sweep x --seed 1-5000": "5000 values; up to 1000",
    "sweep x --seed 1-500 --g 1-3": "500 x 3 = 1500 pictures",
    "sweep x --seed -1,2": "seed=-1",
    "sweep x --dim 64,100": "96 and 104",
    "sweep x --dim 64,128 --width 64": "either",
    "sweep x --scheduler lms,k": "scheduler='k'",
    "sweep x --scheduler lms,ddim --karras yes,no": "Karras",
    "sweep x --scheduler lms,euler --lms-order 2": "lms_order=2",
    "sweep x --lms-order 3-5": "lms_order=5",
    "sweep x --clip-skip 0-2": "clip_skip=0",
    "sweep x --karras maybe,no": "neither yes nor no",
    "sweep x --g 1,2 --steps 4,5 --seed 1,2 --dim 8,16": "4 things vary",
    "sweep {a|b": "open at one end",
    "sweep {a|{b|c}}": "another inside",
    "sweep - --g 1,2": "standard input",
    "sweep x --negative {a|b": "negative='{a|b'",
    "sweep \udcff --g 1,2": "not UTF-8",
    "sweep x --g 1,2 --negative \udcff": "--negative is not UTF-8",
    "sweep x --g 1,2 --batch 0": "batch=0",
    "sweep x --g 1,2 --out x.png": "fills a folder",
    "sweep x --g 1,2 --out file": "file is not a folder",
    "sweep x --g 1,2 --device tpu": "device='tpu'",
    "sweep x --g 1,2 --dtype int8": "dtype='int8'",
    "sweep x --g 1,2 --n 3": "--n",
}


def test_every_wrong_usage_is_told_in_a_paragraph_and_without_torch(tmp_path):
    """All in one process, which must not have imported torch at the end."""
    (tmp_path / "file").touch()
    code = (
        "import json, sys, contextlib, io\n"
        "from sdpipe.cli import main\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as err:\n"
        "        status = main(line.split(' '))\n"
        "    print(json.dumps([status, err.getvalue()]))\n"
        "print(json.dumps(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, json.dumps(list(WRONG))],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        text=True,
        timeout=100,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for line, (status, err) in zip(WRONG, answers, strict=False):
        assert status == 2, line
        assert re.fullmatch(r"sdpipe: error: [^\n]*\.\n", err), (line, err)
        assert WRONG[line].lower() in err.lower(), (line, err)
    assert answers[-1] == []
    assert os.listdir(tmp_path) == ["file"]
