"""An image is drawn again from its metadata, to the same bits."""

import io
import json
import os
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_bytes
from support.errors import raises
from support.metadata import A1111, INVOKEAI, change, foreign_image, our_image
from support.tiny import tiny_model

from sdpipe import Pipeline, UsageError
from sdpipe.cli.replay import parse_changes
from sdpipe.errors import SdpipeError
from sdpipe.io import png
from sdpipe.io.pixels import compare_pixels
from sdpipe.metadata.replay import prepare
from sdpipe.runtime.device import dtype_name, pick_dtype
from sdpipe.settings import Settings

FAST = ["--device", "cpu", "--dtype", "float32", "--steps", "4"]
EMOJI = ["--model", "emoji", *FAST]

# In an empty folder, and with each model loaded once.
pytestmark = pytest.mark.usefixtures("run")


@pytest.fixture
def draw(run):
    """Draws with the built-in model, at its own size where dim is None, and returns the paths."""

    def draw(prompt, *arguments, dim=64):
        size = [] if dim is None else ["--dim", dim]
        status, out, err = run("generate", prompt, *EMOJI, "--seed", "7", *size, *arguments)
        assert status == 0, err
        return out.split()

    return draw


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [str(tiny_model(folder / str(seed), seed=seed)) for seed in (0, 1)]


RUNS = {
    "alone": ("red apple", ["--out", "x.png"]),
    "four": ("red apple", ["--n", "4", "--out", "x.png"]),
    "prompts": ("-", ["--n", "2", "--out", "x.png", "--negative-prompt", "dark, with: signs"]),
    "batch_invariant": ("red apple", ["--n", "2", "--batch-invariant", "--out", "x.png"]),
    "steps": ("red apple", ["--n", "2", "--save-int", "--out", "x.png"]),
    "webp": ("red apple", ["--out", "x.webp"]),
    "random": ("red apple", ["--n", "2", "--scheduler", "euler_a", "--out", "o"]),
    "karras": ("red apple", ["--karras", "--lms-order", "1", "--g", "1", "--out", "x.png"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_an_image_is_drawn_again_and_is_identical(draw, run, monkeypatch, name, tmp_path):
    prompt, options = RUNS[name]
    prompts = io.BytesIO(b"red apple\ncrab on a blue background\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(prompts))
    *_, path = draw(prompt, *options, dim=None if name == "alone" else 64)
    before = sorted(tmp_path.rglob("*"))
    assert run("info", path)[0] == 0
    status, out, err = run("replay", path, "--verify")
    assert (status, out) == (0, "identical\n"), err
    assert err.endswith(" s, the recorded pixels\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_jpeg_is_measured(draw, run):
    (path,) = draw("red apple", "--out", "x.jpg")
    status, out, _ = run("replay", path, "--verify")
    assert status == 0
    assert out.startswith("identical to what was saved; lost by the file's format: largest ")
    with Image.open(path) as image:
        image.convert("L").convert("RGB").save("grey.jpg", exif=image.getexif(), quality=95)
    status, out, _ = run("replay", "grey.jpg", "--verify")
    assert status == 1
    assert out.startswith("edited: ")


def test_what_is_drawn_again_is_the_same_file(draw, run, tmp_path):
    path = draw("red apple", "--n", "3", "--save-int", "--out", "x.png")[1]
    status, out, err = run("replay", path, "--out", "y.png")
    assert (status, out) == (0, "y.png\n"), err
    assert (tmp_path / "y.png").read_bytes() == (tmp_path / path).read_bytes()
    x, y = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        for name in ("x-2.steps", "y.steps")
    )
    latents = [load_bytes(steps.pop("latents.safetensors")) for steps in (x, y)]
    assert x == y
    assert "filmstrip.png" in x
    assert all(torch.equal(tensor, latents[1][name]) for name, tensor in latents[0].items())


FASTEST = dtype_name(pick_dtype("auto", torch.device("cpu")))


@pytest.mark.parametrize(
    ("model", "dtype"),
    [*(("emoji", dtype) for dtype in sorted({"float32", FASTEST})), ("tiny", "bfloat16")],
)
def test_what_the_neighbours_in_a_batch_show_does_not_matter(models, model, dtype):
    """What `replay` relies on: an image depends on the size of its batch, not on its neighbours."""
    model = models[0] if model == "tiny" else model
    pipe = Pipeline(model, device="cpu", dtype=dtype)
    prompts = ["red apple", "crab", "rocket on a blue background"]
    same = {"seed": 3, "steps": 2, "scheduler": "ddim"}
    batch = pipe.generate(prompts, **same).images
    for k, prompt in enumerate(prompts):
        again = pipe.generate(prompt, n=3, **same).images[k]
        assert again.tobytes() == batch[k].tobytes()


def test_an_edited_pixel_is_named(draw, run):
    (path,) = draw("red apple", "--out", "x.png")
    with Image.open(path) as image:
        image.putpixel((5, 5), (0, 0, 255))
        edited = png.save(image, "edited.png", png.read(path))
    status, out, _ = run("replay", edited, "--verify")
    assert status == 1
    assert out.startswith("edited: the file's pixels are no longer those that were drawn (largest ")
    assert out.endswith("; the redrawn image matches the recorded hash\n")
    with Image.open(path) as image:
        small = png.save(image.resize((32, 32)), "small.png", png.read(path))
    status, out, _ = run("replay", small, "--verify")
    assert status == 1
    assert "(their sizes differ); the redrawn image matches the recorded hash" in out


def test_another_dtype_is_close_and_named(models, run):
    arguments = [*FAST, "--seed", "7", "--scheduler", "ddim", "--out", "x.png"]
    assert run("generate", "red apple", "--model", models[0], *arguments)[0] == 0
    again = ["replay", "x.png", "--verify", "--model", models[0], "--dtype", "bfloat16"]
    status, out, err = run(*again)
    assert status == 3
    assert out.startswith("close: largest ")
    assert out.endswith("  dtype: float32 then, bfloat16 now\n")
    assert err.endswith("not the recorded pixels: see --verify\n")
    status, out, _ = run(*again, "--json")
    told = json.loads(out)
    assert status == 3
    assert told["outcome"] == "close"
    assert told["changed"] == {"dtype": {"then": "float32", "now": "bfloat16"}}
    assert (told["redraw_matches"], told["file_matches"]) == (False, True)
    assert 35 <= told["psnr"] < 99


def test_other_weights_are_different_and_named(run, models):
    arguments = [*FAST, "--seed", "7", "--scheduler", "ddim", "--out", "x.png"]
    assert run("generate", "red apple", "--model", models[0], *arguments)[0] == 0
    status, out, err = run("replay", "x.png", "--verify")
    assert (status, out) == (1, "")
    assert "no path is opened" in err
    assert run("replay", "x.png", "--verify", "--model", models[0])[:2] == (0, "identical\n")
    status, out, err = run("replay", "x.png", "--verify", "--model", models[1])
    assert status == 1
    assert out.startswith("different: largest ")
    assert "  weights: " in out
    assert "the model's weights are not those that drew it: sha256 " in err


def test_with_changed_settings_it_is_another_image(draw, run):
    path = draw("red apple", "--n", "3", "--out", "x.png")[1]
    sets = [
        "--set",
        "g=1",
        "--set",
        "dim=72",
        "--set",
        "scheduler=ddim",
        "--set",
        "batch_invariant=yes",
    ]
    status, out, err = run("replay", path, *sets, "--out", "y.png")
    assert (status, out) == (0, "y.png\n"), err
    told = png.read("y.png")["sdpipe"]
    assert told["batch"] == {"n": 1, "index": 0}
    drawn = Settings.from_dict(told["settings"])
    wanted = {"g": 1, "width": 72, "height": 72, "scheduler": "ddim", "steps": 4, "seed": 8}
    assert {name: getattr(drawn, name) for name in wanted} == wanted
    assert (drawn.prompt, drawn.lms_order, drawn.batch_invariant) == ("red apple", None, True)
    status, out, _ = run("replay", path, "--set", "n=2", "--set", "prompt=crab", "--json")
    told = json.loads(out)
    assert [entry["seed"] for entry in told["written"]] == [8, 9]
    assert [entry["path"] for entry in told["written"]] == [
        "outputs/0001-crab.png",
        "outputs/0002-crab.png",
    ]


def test_changes_are_read_as_settings_are():
    pairs = ["prompt=a=b", "g=5", "steps=80", "karras=No", "seed=", "scheduler=heun", "lms_order="]
    assert parse_changes(pairs) == {
        "prompt": "a=b",
        "g": 5,
        "steps": 80,
        "karras": False,
        "seed": None,
        "scheduler": "heun",
        "lms_order": None,
    }


WRONG = {
    "--set colour=red": "colour",
    "--set steps": "steps",
    "--set steps=0": "steps=0",
    "--set steps=many": "steps='many'",
    "--set dim=500": "dim=500",
    "--set karras=perhaps": "karras='perhaps'",
    "--set scheduler=k": "scheduler='k'",
    "--set prompt=\udcff": "prompt",
    "--set steps=5 --verify": "--verify",
    "--set init_image=x.png": "init_image",
    "--device tpu": "device='tpu'",
    "--dtype int8": "dtype='int8'",
    "--model nowhere/at/all": "model='nowhere/at/all'",
    "--out x.gif": "x.gif",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_usage(run, arguments):
    our_image("x.png")
    status, out, err = run("replay", "x.png", *arguments.split(" "))
    assert (status, out) == (2, "")
    assert err.startswith("sdpipe: error: ")
    assert err.count("\n") == 1
    assert WRONG[arguments] in err
    assert os.listdir() == ["x.png"]


REFUSED = {
    "steps=-3": change("settings", "steps", -3),
    "steps='many'": change("settings", "steps", "many"),
    "setting 'x'": change("settings", "x", 1),
    "height=500": change("settings", "height", 500),
    "n=5 is in the settings of a single image": change("settings", "n", 5),
    "its metadata has no seed": change("settings", "seed", None),
    "settings have no prompt": lambda written: written["settings"].pop("prompt"),
    "its size of 16384 x 16384": lambda w: w["settings"].update(width=16384, height=16384),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_invalid_settings_are_refused(rule):
    with raises(SdpipeError, value="x.png", rule=f"cannot be drawn again: {rule}"):
        prepare(our_image("x.png", REFUSED[rule]))


def test_the_grid_of_a_sweep_is_not_drawn():
    sweep = {"prompt": "x", "g": [1, 2]}
    path = our_image("x.png", change("sweep", sweep), change("settings", {}))
    with raises(SdpipeError, value=path, rule="grid of a sweep", remedy=f"sdpipe info {path}"):
        prepare(path)


def test_a_batch_too_large_to_be_drawn_is_not():
    job = prepare(our_image("x.png", change("batch", {"n": 100_000, "index": 3})))
    assert (job.n, job.index, list(job.indices)) == (1, 0, [0])
    assert "drawn alone" in job.notes[0]


def test_changes_take_along_what_they_exclude():
    path = our_image("x.png", change("settings", "karras", True))
    job = prepare(path, changes={"scheduler": "ddim"})
    assert (job.settings.karras, job.settings.lms_order) == (False, None)
    assert "Karras" in job.notes[0]
    with raises(UsageError):
        prepare(path, changes={"scheduler": "ddim", "karras": True})
    wide = prepare(path, changes={"width": 16384, "height": 16384})
    assert wide.settings.width == 16384


def test_a_change_may_correct_an_invalid_setting():
    path = our_image("x.png", change("settings", "height", 500))
    assert prepare(path, changes={"dim": 512}).settings.height == 512
    with raises(SdpipeError, value="x.png", rule="height=500"):
        prepare(path, changes={"steps": 0})


def test_an_image_of_a1111_is_drawn_as_far_as_it_can_be(run):
    small = A1111.replace("512x768", "64x72").replace("Steps: 20", "Steps: 3")
    foreign_image("x.png", parameters=small)
    status, out, err = run("replay", "x.png", "--model", "emoji", "--out", "y.png")
    assert (status, out) == (0, "y.png\n"), err
    notes = [line for line in err.split("\n") if line.startswith("sdpipe: x.png: ")]
    assert len(notes) == 2
    assert "its noise is taken to be that of an NVIDIA GPU" in notes[0]
    assert notes[1] == "sdpipe: x.png: left out: Lora hashes."
    drawn = Settings.from_dict(png.read("y.png")["sdpipe"]["settings"])
    assert (drawn.width, drawn.height, drawn.steps, drawn.seed) == (64, 72, 3, 965400086)
    assert (drawn.scheduler, drawn.g, drawn.negative_prompt) == ("euler_a", 7, "ugly, [blurry]")
    assert drawn.clip_skip == 2
    status, out, _ = run("replay", "x.png", "--model", "emoji", "--verify")
    assert status == 1
    assert out.startswith("different: their sizes differ\n  model: realistic then, emoji now\n")


def test_an_image_of_another_program_does_not_name_our_model():
    job = prepare(foreign_image("x.png", invokeai_metadata=INVOKEAI))
    assert job.model is None
    assert "'sd15'" in job.notes[-1]
    bare = foreign_image("y.png", parameters="cat\nSteps: 3, Seed: 1, Size: 8x8, Model: emoji")
    assert prepare(bare).model is None
    with raises(SdpipeError, value="z.png", rule="no seed", remedy="--set seed=42"):
        prepare(foreign_image("z.png", parameters="a cat"))
    assert prepare("z.png", changes={"seed": 4}).settings == Settings(prompt="a cat", seed=4)


def test_our_own_text_without_our_json_is_drawn_again(draw, run):
    (path,) = draw("red apple", "--out", "x.png", "--lms-order", "4")
    with Image.open(path) as image:
        foreign = foreign_image("y.png", parameters=image.info["parameters"])
        assert prepare(foreign).model == "emoji"
        status, _, err = run("replay", foreign, *FAST[:4], "--out", "z.png")
        assert status == 0, err
        with Image.open("z.png") as again:
            assert compare_pixels(image, again).psnr is None


def test_a_built_in_lora_brings_its_settings_and_needs_no_naming(run):
    arguments = ["--model", "emoji", "--lora", "emoji-lcm:1", "--seed", "3", "--out", "x.png"]
    status, _, err = run("generate", "🍎", *arguments)
    assert status == 0, err
    with Image.open("x.png") as image:
        settings = json.loads(image.text["sdpipe"])["settings"]
    assert settings["prompt"] == "red apple"  # the model's vocabulary is what it was
    assert (settings["steps"], settings["g"], settings["scheduler"]) == (4, 1.0, "lcm")
    assert run("replay", "x.png", "--verify")[:2] == (0, "identical\n")
