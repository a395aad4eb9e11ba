"""`sdpipe sweep`: what it draws, and what of it is drawn already."""

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
from pathlib import Path

import pytest
from PIL import Image
from support.command_lines import assert_told
from support.forked import forked
from support.tiny import tiny_model

import sdpipe.pipeline
from sdpipe.errors import SdpipeWarning
from sdpipe.io import png
from sdpipe.io.pixels import load_pixels, pixels_sha256
from sdpipe.metadata.read import read_record

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


def test_every_cell_is_the_picture_that_the_library_draws(sweep, models):
    told, err = sweep("a {cat|dog}", "--seed", "3-5", "--steps", "3,4", "--g", "1", "--out", "o")
    assert re.search(r"sdpipe: 12 images: 12 drawn in \d+\.\d s\n$", err)
    pipe = sdpipe.pipeline.Pipeline(models[0], device="cpu", dtype="float32")
    assert len(told["cells"]) == 12
    for cell in told["cells"]:
        record = read_record(cell["path"])
        assert record.n == 6  # two prompts, three seeds
        assert dict(record.values) == cell["settings"]
        animal, seed, steps = ("cat", "dog"), (3, 4, 5), (3, 4)
        x, y, z = cell["index"]
        assert seed[y] == cell["settings"]["seed"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SdpipeWarning)  # random weights draw no image
            images, _ = pipe.plan(
                f"a {animal[x]}", seed=seed[y], steps=steps[z], g=1, scheduler="ddim"
            )
            (result,) = pipe.draw(images * 6)  # what the neighbours show does not matter
        assert cell["settings"] == result.settings[0].to_dict()
        drawn = pixels_sha256(result.images[record.index])
        assert pixels_sha256(load_pixels(cell["path"])) == drawn


def test_a_cell_is_replayed_to_the_same_bits(run, sweep, models):
    told, _ = sweep("red apple", "--seed", "1-3", "--steps", "3", "--karras", "no")
    assert told["grid"] == "outputs/sweep-red-apple-by-seed/grid.png"
    for cell in told["cells"]:
        status, out, err = run("replay", cell["path"], "--verify", "--model", models[0])
        assert (status, out) == (0, "identical\n"), err


def test_the_first_that_was_typed_goes_across(sweep):
    told, _ = sweep("red {apple|cat}", "--steps", "2,3", "--g", "1", "--seed", "1,5", "--out", "o")
    assert list(told["sweep"])[:4] == ["prompt", "steps", "g", "seed"]
    assert [tuple(cell["index"]) for cell in told["cells"]][-1] == (1, 1, 1)
    assert told["cells"][2]["settings"]["steps"] == 3


def test_what_is_there_is_not_drawn_again_and_more_values_only_add(sweep):
    more = ["--steps", "2,3", "--g", "1", "--out", "o"]
    first, _ = sweep("red apple", "--seed", "1-2", *more)
    before = contents("o")
    again, err = sweep("red apple", "--seed", "1-2", *more)
    assert err == "sdpipe: 4 images: 4 there before\n"
    assert contents("o") == before
    assert again["grid"] == first["grid"] == "o/grid.png"
    wider, err = sweep("red apple", "--seed", "1-3", *more)
    assert err.startswith("sdpipe: 4 of 6 images are there already.\n")
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
    assert "\rdrawing 4 images ..." in first
    assert "drawing 4 images: 100%" in first
    assert ": 0it [" not in first
    assert re.fullmatch(
        r"laying out the grid \.\.\.\r\x1b\[Ksdpipe: 4 images: 4 drawn in \S+ s",
        first.split("\n")[-2],
    )
    again = shown()
    assert "drawing" not in again
    assert again.count("\n") == 1
    assert again.endswith("\x1b[Ksdpipe: 4 images: 4 there before\n")


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
    assert "o/seed=2.png is not an image by sdpipe (and so on: 2 files); what is there stays" in err
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
    assert "4 images: 2 drawn in" in err
    assert ", 2 without an image\n" in err
    assert os.path.exists("o/grid.png")


def test_a_warning_for_all_cells_is_said_once(sweep):
    _, err = sweep("[red:green:90] apple", "--g", "1,2,3", "--steps", "2", "--out", "o")
    assert err.count("changes after step 90") == 1


def test_the_grid_tells_how_it_was_made(run, sweep, models):
    arguments = [
        "a {cat|dog}",
        "--negative-prompt",
        "red",
        "--seed",
        "1-2",
        "--steps",
        "2",
        "--out",
        "o",
    ]
    told, _ = sweep(*arguments)
    status, out, _ = run("info", "o/grid.png")
    assert status == 0
    assert "a sweep; this draws it again:" in out
    assert "trainedAlgorithmicMedia" in out
    assert "as they were drawn" in out
    _, out, _ = run("info", "o/grid.png", "--json")
    (found,) = json.loads(out)
    assert found["sweep"] == told["sweep"]
    assert found["sweep"]["seed"] == [1, 2]
    command = found["command"]
    status, out, err = run("replay", "o/grid.png", "--verify")
    assert (status, out) == (1, "")
    assert "is the grid of a sweep" in err
    assert "sdpipe info o/grid.png" in err
    # What it says is what draws it: nothing is left to draw, and the grid is the same.
    before = contents("o")
    # The model's folder has a name there, and no path.
    status, out, err = run(*shlex.split(command)[1:], "--model", models[0], "--out", "o")
    assert (status, out) == (0, "o/grid.png\n")
    assert err == "sdpipe: 4 images: 4 there before\n"
    assert contents("o") == before
    text = png.read("o/grid.png")["parameters"]
    assert text.startswith("a cat\nNegative prompt: red\nSteps: 2, Sampler: DDIM")
    assert text.endswith(
        'Script: X/Y/Z plot, X Type: prompt, X Values: "cat,dog", Y Type: Seed, Y Values: "1,2"'
    )


def test_interrupted_it_goes_on_where_it_was(run, sweep, models, tmp_path):
    # In a process of its own, with a real signal.
    arguments = ["red apple", "--seed", "1-3", "--steps", "2-60", "--g", "1", "--out", "o"]
    command = ["sweep", *arguments, "--model", models[0], *FAST, "--scheduler", "ddim"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with forked(*command, **pipes) as process:
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
    # The signal may come between a file and its count.
    assert err in {
        f"sdpipe: {len(before) - k} of 177 images are done; the same command goes on.\n"
        "sdpipe: interrupted\n"
        for k in (0, 1)
    }
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
    "sweep x --g 1,a": "g='a' is neither a number nor a range",
    "sweep x --g 1,12:": "g='12:' is neither a number nor a range",
    "sweep x --g 1,inf:2": "g=inf:2 is not finite",
    "sweep x --g 12:4": "nothing varies",
    "sweep x --guidance-interval 0.3,5": "nothing varies",
    "sweep x --guidance-interval 0.3,5;5": "guidance_interval=5 is not two noise levels",
    "sweep x --guidance-interval 0.3,5;": "has an empty place",
    "sweep x --g 1,2 --safety on": "safety='on' is not known",
    "sweep x --guidance-rescale 0,2": "guidance_rescale=2 is out of range",
    "sweep x --g 1,nan": "g=nan is not finite",
    "sweep x --steps 10,2.5": "steps='2.5' is neither a whole number",
    "sweep x --steps 10-50[0]": "not a whole number from 1",
    "sweep x --steps 10-50(5)": "with its sign",
    "sweep x --seed 1-5000": "5000 values, and up to 1000",
    "sweep x --seed 1-500 --g 1-3": "500 x 3 = 1500 images",
    "sweep x --seed -1,2": "seed=-1",
    "sweep x --dim 64,100": "96 and 104",
    "sweep x --dim 64,128 --width 64": "either",
    "sweep x --scheduler lms,k": "scheduler='k'",
    "sweep x --scheduler lms,ddim --karras yes,no": "Karras",
    "sweep x --scheduler lms,euler --lms-order 2": "lms_order=2",
    "sweep x --lms-order 3-5": "lms_order=5",
    "sweep x --clip-skip 0-2": "clip_skip=0",
    "sweep x --karras maybe,no": "karras='maybe' is not true or false",
    "sweep x --g 1,2 --steps 4,5 --seed 1,2 --dim 8,16": "4 axes",
    "sweep {a|b": "open at one end",
    "sweep {a|{b|c}}": "inside of another",
    "sweep - --g 1,2": "standard input",
    "sweep x --negative-prompt {a|b": "negative_prompt='{a|b'",
    "sweep \udcff --g 1,2": "not UTF-8",
    "sweep x --g 1,2 --negative-prompt \udcff": "is not UTF-8",
    "sweep x --g 1,2 --batch 0": "batch=0",
    "sweep x --g 1,2 --out x.png": "fills a folder",
    "sweep x --g 1,2 --out file": "file is not a folder",
    "sweep x --g 1,2 --device tpu": "device='tpu'",
    "sweep x --g 1,2 --dtype int8": "dtype='int8'",
    "sweep x --g 1,2 --n 3": "--n",
}


def test_every_wrong_usage_is_told_in_a_paragraph(tmp_path):
    (tmp_path / "file").touch()
    assert_told(WRONG, tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_cells_of_emoji_are_named_as_they_are_read(sweep):
    typed = ["{🍎|🐶}", "--steps", "2", "--g", "1", "--dim", "32"]
    told, err = sweep(*typed, "--seed", "1", "--scheduler", "lms", "--out", "o", model="emoji")
    assert err.count("is read as '{red apple|dog face}'") == 1
    assert [cell["path"] for cell in told["cells"]] == [
        *("o/prompt=red_apple.png", "o/prompt=dog_face.png")
    ]
    assert [cell["settings"]["prompt"] for cell in told["cells"]] == ["red apple", "dog face"]


def test_two_equal_sweeps_at_once_draw_nothing_twice(models, tmp_path):
    """Each of two processes draws what the other does not, with one drawn seed."""
    command = ["sweep", "{cat|dog|red apple}", "--g", "1,2,3,4", "--steps", "20", "--json"]
    command += ["--model", models[0], "--scheduler", "ddim", *FAST, "--out", "o"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [forked(*command, cwd=tmp_path, **pipes) for _ in range(2)]
    answers = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    told = [json.loads(out)["cells"] for out, _ in answers]
    drawn = [{tuple(cell["index"]) for cell in cells if cell["drawn"]} for cells in told]
    assert drawn[0] & drawn[1] == set()
    assert len(drawn[0] | drawn[1]) == 12
    assert len({cell["settings"]["seed"] for cells in told for cell in cells}) == 1
    names = sorted(path.name for path in (tmp_path / "o").iterdir())
    images = {f"prompt={p}-g={g}.png" for p in ("cat", "dog", "red_apple") for g in "1234"}
    assert set(names) - {"grid-1.png"} == {*images, "grid.png"}


def test_a_claim_of_a_dead_process_is_taken_over(sweep, tmp_path):
    """What a killed process had claimed is drawn; its lock went with it."""
    hold = "import sys, time; from pathlib import Path; from sdpipe.io.claims import claim\n"
    hold += "with claim(Path('o'), ['seed=1']): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.kill()
    told, _ = sweep("cat", "--seed", "1,2", "--steps", "2", "--out", "o")
    assert [cell["drawn"] for cell in told["cells"]] == [True, True]
    assert not [path for path in Path("o").iterdir() if path.name.startswith(".")]
