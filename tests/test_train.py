"""`train` from a folder of pictures to a folder that draws; stopped, refused, resumed, shared."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from tiny import tiny_model

from sdpipe import Pipeline, SdpipeWarning
from sdpipe.cli import main
from sdpipe.training import ddpm, fit, glyphs
from sdpipe.training import model as models
from sdpipe.training.recipe import Samples
from sdpipe.training.samples import Sheets, sheet
from sdpipe.training.text import OtherWords

RECIPE = """
seed = 1
size = 32
[scenes]
pictures = 12
shares = [0.25, 0.25, 0.25, 0.25]
placed_on_colour = 0.2
scale = [0.9, 1.0]
shift = 0.02
[tokenizer]
vocabulary = 560
length = 20
[vae]
block_out_channels = [8, 8, 8, 16]
layers_per_block = 1
latent_channels = 4
norm_num_groups = 4
crop = 16
whole = 0.5
steps = 4
batch = 4
learning_rate = 1e-3
ema = 0.9
edges = 0.5
square = 1.0
kl = 1e-3
decoder_steps = 2
decoder_rate = 1e-3
decoder_square = 5.0
[text]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
grid = 4
dropped = 0.1
reworded = 1.0
merge_dropout = 0.1
steps = 3
batch = 4
learning_rate = 1e-3
muon_rate = 1e-3
[unet]
block_out_channels = [16, 16]
layers_per_block = 1
attention_head_dim = 2
norm_num_groups = 4
beta_start = 0.00085
beta_end = 0.012
timesteps = 1000
prediction_type = "v_prediction"
weight = 60.0
dropped = 0.1
train_text_encoder = false
steps = 6
batch = 4
learning_rate = 1e-3
muon_rate = 1e-3
warmup = 2
ema = 0.9
[joint]
steps = 3
batch = 4
warmup = 1
[other_words]
merge_dropout = 0.1
steps = 2
batch = 4
[both]
captions = 3
steps = 2
batch = 4
warmup = 1
[tune]
steps = 3
batch = 2
[samples]
pictures = 2
steps = 2
[sampling]
g = 2.0
steps = 5
lms_order = 1
"""
PARTS = ("unet", "vae", "text_encoder")
STAGES = {
    "vae": 4,
    "decoder": 2,
    "text": 3,
    "unet": 6,
    "joint": 3,
    "other_words": 2,
    "both": 2,
}
COLOURS = ("red", "blue", "green")

# A model of six steps draws nothing yet, and lms, which it prefers, takes that badly.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")


def write_pictures(folder, colours=COLOURS):
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w") as file:
        for colour in colours:
            Image.new("RGB", (40, 36), colour).save(folder / f"{colour}.png")
            line = {"file_name": f"{colour}.png", "text": f"a {colour} square"}
            file.write(json.dumps(line) + "\n")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A recipe and a folder of pictures."""
    place = tmp_path_factory.mktemp("train")
    (place / "recipe.toml").write_text(RECIPE)
    write_pictures(place / "data")
    return place


def options(place, out, **changes):
    given = {"data": place / "data", "recipe": place / "recipe.toml", "device": "cpu", **changes}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return ["train", *words, f"--out={out}"]


@pytest.fixture(scope="module")
def model(place):
    """A model trained without a stop."""
    assert main(options(place, place / "model")) == 0
    return place / "model"


def recipe_with(path, **tables):
    """Writes the recipe with other values; JSON's numbers and lists are TOML's too."""
    lines = []
    for name, value in tomllib.loads(RECIPE).items():
        if isinstance(value, dict):
            lines.append(f"[{name}]")
            value = {**value, **tables.get(name, {})}
            lines += [f"{key} = {json.dumps(v)}" for key, v in value.items()]
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    path.write_text("\n".join(lines))
    return path


def weights(model):
    return {
        f"{part}.{name}": tensor
        for part in PARTS
        for name, tensor in load_file(next((model / part).glob("*.safetensors"))).items()
    }


def assert_same(model, other, parts=PARTS):
    ours, theirs = weights(model), weights(other)
    assert ours.keys() == theirs.keys()
    differ = [k for k in ours if not torch.equal(ours[k], theirs[k])]
    assert not [k for k in differ if k.startswith(parts)]


@pytest.fixture
def refused(capsys):
    """Runs a command that fails, and returns the sentence that says why."""

    def run(arguments, status=2):
        assert main(arguments) == status
        out, err = capsys.readouterr()
        assert out == ""
        said = [line for line in err.splitlines() if line.startswith("sdpipe: error: ")]
        assert len(said) == 1, err
        return said[0].removeprefix("sdpipe: error: ")

    return run


def test_a_folder_of_pictures_becomes_a_model(place, model, tmp_path, capsys, monkeypatch):
    capsys.readouterr()
    assert main(options(place, model)) == 0  # finished: it is only written again
    out, err = capsys.readouterr()
    assert out == f"{model}\n"
    assert err.startswith("sdpipe: 3 captioned pictures, 32 x 32\n")
    assert err.endswith(f"sdpipe: draw with it: sdpipe generate 'a red square' --model {model}\n")
    assert "shards" not in err

    monkeypatch.chdir(tmp_path)
    drawing = ["generate", "a red square", "--model", str(model), "--seed", "0", "--device", "cpu"]
    assert main([*drawing, "--dtype", "float32"]) == 0
    with Image.open(capsys.readouterr().out.strip()) as picture:
        assert picture.size == (32, 32)
    pipe = Pipeline(model, device="cpu", dtype="float32")
    settings = pipe.generate("a red square", seed=0).settings[0]
    assert (settings.g, settings.steps, settings.lms_order) == (2.0, 5, 1)
    encoded = load_file(model / "training" / "latents.safetensors")["latents"]
    scale = pipe.components.vae.config.scaling_factor
    assert scale == pytest.approx(1 / encoded.float().std().item())
    assert {tensor.dtype for tensor in weights(model).values()} == {torch.float16}

    theirs = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    assert type(theirs.unet).__name__ == "UNet2DConditionModel"
    theirs.set_progress_bar_config(disable=True)
    drawn = theirs("a red square", num_inference_steps=2, height=32, width=32).images[0]
    assert drawn.size == (32, 32)


def test_what_is_learned_is_drawn(tmp_path):
    """Two colours and their names: enough to see that everything between them works."""
    recipe = recipe_with(
        tmp_path / "recipe.toml",
        vae={
            "block_out_channels": [16] * 4,
            "norm_num_groups": 1,  # more of them would take the colour out of a plain picture
            "steps": 120,
            "batch": 16,
            "learning_rate": 3e-3,
            "whole": 0.0,
            "ema": 0.95,
        },
        text={"hidden_size": 32, "steps": 40, "batch": 16, "muon_rate": 1e-2},
        unet={
            "block_out_channels": [32, 32],
            "norm_num_groups": 8,
            "steps": 200,
            "batch": 16,
            "learning_rate": 3e-3,
            "muon_rate": 1e-2,
            "warmup": 10,
            "ema": 0.95,
        },
        samples={"pictures": 0},
    )
    data = write_pictures(tmp_path / "data", ("red", "blue"))
    command = options(tmp_path, tmp_path / "out", data=data, recipe=recipe, seed=8)
    assert main(command) == 0
    assert not (tmp_path / "out/training/samples").exists()
    pipe = Pipeline(tmp_path / "out", device="cpu", dtype="float32")

    def redness(caption):
        drawn = pipe.generate(caption, n=4, seed=0, g=3, steps=8, scheduler="ddim").images
        red, _, blue = np.mean([np.asarray(picture) for picture in drawn], axis=(0, 1, 2))
        return red - blue  # 255 for the red picture itself

    assert redness("a red square") > 100
    assert redness("a blue square") < -100
    assert pipe.components.scheduler_config["prediction_type"] == "v_prediction"


def test_what_stands_in_the_folder(model):
    training = model / "training"
    names = {path.name for path in training.iterdir()}
    assert names == {
        *("run.json", "recipe.toml", "loss.csv", "pictures.rgb", "latents.safetensors", "samples"),
        *(f"{stage}.checkpoint" for stage in STAGES),
    }
    assert (training / "recipe.toml").read_text() == RECIPE
    rows = [line.split(",")[:2] for line in (training / "loss.csv").read_text().splitlines()]
    assert rows == [["stage", "step"], *([stage, str(steps)] for stage, steps in STAGES.items())]
    modes = {stat.S_IMODE(p.stat().st_mode) for p in model.rglob("*") if p.is_file()}
    assert len(modes) == 1  # whoever may read one file of it may read all
    samples = sorted(path.name for path in (training / "samples").iterdir())
    assert samples == ["both-000002.png", "joint-000003.png", "unet-000006.png"]
    with Image.open(training / "samples" / samples[0]) as picture:
        assert picture.width > 2 * 128  # two captions, small pictures four times as large


def test_the_text_encoder_learns_in_all_stages_but_the_unets(model):
    name = "encoder.layers.0.mlp.fc1.weight"

    def ends(stage, part, *, before=False):
        state = torch.load(model / "training" / f"{stage}.checkpoint")[part]
        [weight, *again] = [
            weight
            for key, weight in state.items()
            if key.endswith(name) and before == (".before." in f".{key}")
        ]
        assert all(torch.equal(weight, other) for other in again)
        return weight

    alone, frozen = ends("text", "model"), ends("unet", "model")
    joint, words = ends("joint", "average"), ends("other_words", "model")
    both = ends("both", "average")
    [shipped] = [w for key, w in weights(model).items() if key.startswith("text") and name in key]
    assert torch.equal(alone, frozen)
    assert not torch.equal(frozen, joint)
    assert torch.equal(joint, ends("other_words", "model", before=True))
    assert not torch.equal(joint, words)
    assert torch.equal(words, ends("both", "model", before=True))
    assert not torch.equal(words, both)
    assert torch.equal(both.half(), shipped)


def test_the_unet_learns_on_in_the_last_stage(model):
    name = "unet.mid_block.resnets.0.conv1.weight"
    weights_of = [
        torch.load(model / "training" / f"{stage}.checkpoint")["average"][f"module.{name}"]
        for stage in ("joint", "both")
    ]
    assert not torch.equal(*weights_of)


def test_a_sheet_has_the_picture_above_the_drawing_above_the_caption():
    cells = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    paper = sheet(cells, cells[::-1], ["one", "two \N{SNOWMAN}", "word " * 40])
    columns = [[paper.getpixel((x, y)) for y in (70, 200)] for x in (70, 206, 342)]
    red, green, blue = (255, 0, 0), (0, 128, 0), (0, 0, 255)
    assert columns == [[red, blue], [green, green], [blue, red]]
    assert np.asarray(paper)[280:].min() < 100


def test_sheets_are_drawn_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    class Two:
        def __len__(self):
            return 2

        def caption(self, i):
            return f"number {i}"

    cell = Image.new("RGB", (32, 32))
    data = type("Data", (), {"pictures": Two()})
    monkeypatch.setattr(Sheets, "draw", lambda self, loss: [cell] * 2)

    def steps(every):
        sheets = Sheets(
            data, None, Samples(pictures=8, every=every), 4, tmp_path / str(every), "unet"
        )
        sheets.truth = [cell] * 2
        for step in (1, 2, 3, 4):
            sheets(step, None)
        return sorted(path.name for path in sheets.folder.iterdir())

    monkeypatch.setattr("sdpipe.training.samples.SHARE", 0)
    assert steps(0) == [f"unet-00000{k}.png" for k in (1, 2, 3, 4)]
    assert steps(1000) == ["unet-000001.png", "unet-000004.png"]


def kill_at(call, loss):
    """Has the process die, as if its plug were pulled, in a call of one of two losses."""
    loss = {"unet": ddpm.DenoisingLoss, "words": OtherWords}[loss]
    original, calls = loss.loss, []

    def dying(self, *arguments):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    loss.loss = dying


def python(*words, launcher=(), **environment):
    folder = str(Path(__file__).parent)
    return subprocess.run(
        [sys.executable, *launcher, *words],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": folder, **environment},
    )


@pytest.mark.parametrize(
    ("call", "loss", "stage", "step"),
    [
        (4, "unet", "unet", 3),
        (8, "unet", "joint", 1),
        (2, "words", "other_words", 1),
        (4, "words", "both", 1),
    ],
)
def test_a_run_that_was_killed_goes_on_to_the_same_weights(
    place, model, tmp_path, call, loss, stage, step
):
    code = (
        "import sys, test_train; from sdpipe.training import fit; from sdpipe.cli import main;"
        f"fit.SAVE_EVERY = fit.SHARE = 0; test_train.kill_at({call}, {loss!r});"
        "main(sys.argv[1:])"
    )
    done = python("-c", code, *options(place, tmp_path / "out"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out" / "unet").exists()
    state = torch.load(tmp_path / "out" / "training" / f"{stage}.checkpoint", weights_only=True)
    assert state["step"] == step
    assert main(options(place, tmp_path / "out")) == 0
    assert_same(model, tmp_path / "out")
    logs = [m / "training" / "loss.csv" for m in (model, tmp_path / "out")]
    assert len({log.read_text().count("\n") for log in logs}) == 1


def test_what_is_damaged_is_named_and_made_again(place, model, tmp_path, refused, capsys):
    out = tmp_path / "out"
    shutil.copytree(model, out)
    command = options(place, out)
    for name in ("latents.safetensors", "vae.checkpoint"):
        path = out / "training" / name
        path.write_bytes(path.read_bytes()[:100])
        assert f"{path} is damaged" in refused(command, 1)
        path.unlink()
        assert main(command) == 0
        assert_same(model, out)
        capsys.readouterr()


@contextlib.contextmanager
def no_file_larger_than(size):
    """Every file of this process fails to grow beyond that, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_nothing_is_lost(place, model, tmp_path, refused, monkeypatch):
    """The files grow from stage to stage, so that each limit stops another one."""
    out, command = tmp_path / "out", options(place, tmp_path / "out")
    sizes = {path.name: path.stat().st_size for path in (model / "training").iterdir()}
    again = "Make room for it and give the same command again"

    with no_file_larger_than(sizes["run.json"] // 2):
        assert f"{out} cannot be written (File too large)" in refused(command)
    with no_file_larger_than(sizes["pictures.rgb"] // 2):
        said = refused(command, 1)
    assert said.startswith(f"{out}/training/pictures.rgb cannot be written (File too large).")
    assert said.endswith(f"{again}: it goes on from the last checkpoint.")
    assert not out.exists()
    assert sizes["vae.checkpoint"] < sizes["unet.checkpoint"]
    with no_file_larger_than(sizes["vae.checkpoint"] * 3 // 2):
        assert "unet.checkpoint cannot be written (File too large)" in refused(command, 1)
    assert (out / "training" / "vae.checkpoint").stat().st_size == sizes["vae.checkpoint"]

    # In the middle of a stage: the checkpoint from before stays whole.
    monkeypatch.setattr(fit, "SAVE_EVERY", 0)
    monkeypatch.setattr(fit, "SHARE", 0)
    save, saved = fit._save, []

    def fails_from_the_third(path, parts, step, seconds):
        saved.append(step)
        with no_file_larger_than(1000 if step > 2 else 2**40):
            save(path, parts, step, seconds)

    monkeypatch.setattr(fit, "_save", fails_from_the_third)
    assert "unet.checkpoint cannot be written" in refused(command, 1)
    assert saved == [1, 2, 3]
    assert torch.load(out / "training" / "unet.checkpoint", weights_only=True)["step"] == 2
    monkeypatch.setattr(fit, "_save", save)

    write = models._write

    def limited(model, folder):
        with no_file_larger_than(1000):
            write(model, folder)

    with monkeypatch.context() as at_the_end:
        at_the_end.setattr(models, "_write", limited)
        assert f"{out} cannot be written (" in refused(command, 1)
    assert not (out / "model_index.json").exists()
    assert not (out / "training" / "model.partial").exists()
    assert main(command) == 0
    assert_same(model, out)


def test_another_run_is_not_gone_on_with(place, model, tmp_path, refused):
    """By what differs; and nothing there is touched."""
    before = {p: p.stat().st_mtime_ns for p in model.rglob("*") if p.is_file()}
    recipe = recipe_with(tmp_path / "recipe.toml", vae={"ema": 0.8})
    data = {
        "fewer": (write_pictures(tmp_path / "fewer", COLOURS[:2]), "green.png is no longer in"),
        "more": (
            write_pictures(tmp_path / "more", (*COLOURS, "tan")),
            "tan.png is new in its data",
        ),
        "other": (
            write_pictures(tmp_path / "other", ("red", "tan")),
            "tan.png is in its data where",
        ),
    }
    said = write_pictures(tmp_path / "said")
    text = (said / "metadata.jsonl").read_text()
    (said / "metadata.jsonl").write_text(text.replace("a blue", "one blue"))
    data["said"] = (
        said,
        "the caption of blue.png was 'a blue square' and is 'one blue square' now",
    )
    seen = write_pictures(tmp_path / "seen")
    Image.new("RGB", (40, 36), "navy").save(seen / "blue.png")
    data["seen"] = (seen, "blue.png has changed")
    cases = [
        ({"recipe": recipe}, "vae.ema was 0.9 and is 0.8 now"),
        ({"steps": 12}, "vae.steps was 4 and is 8 now"),
        ({"dim": 64}, "size was 32 and is 64 now"),
        ({"seed": 5}, "seed was 1 and is 5 now"),
        *(({"data": folder}, message) for folder, message in data.values()),
    ]
    for changes, message in cases:
        told = refused(options(place, model, **changes))
        assert told.startswith(f"{model} holds a run that was begun otherwise: "), told
        assert message in told
        assert told.endswith("choose another --out.")
    assert {p: p.stat().st_mtime_ns for p in model.rglob("*") if p.is_file()} == before


def test_what_is_no_run_is_not_written_into(place, tmp_path, refused):
    (tmp_path / "file").touch()
    assert "is not a folder" in refused(options(place, tmp_path / "file"))
    assert "is not empty" in refused(options(place, tmp_path))
    tiny_model(tmp_path / "model")
    assert "is not empty" in refused(options(place, tmp_path / "model"))
    assert "file/out cannot be written (Not a directory)" in refused(
        options(place, tmp_path / "file" / "out")
    )
    (tmp_path / "run" / "training").mkdir(parents=True)
    (tmp_path / "run" / "training" / "run.json").write_text("{")
    assert "run.json cannot be read" in refused(options(place, tmp_path / "run"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that root can't write")
def test_a_folder_that_cannot_be_written_is_refused_before_training(place, refused):
    assert "/proc/out cannot be written (" in refused(options(place, "/proc/out"))


def test_one_picture_is_enough(place, tmp_path, capsys):
    Image.new("RGBA", (9, 7), (0, 0, 0, 0)).save(tmp_path / "1.png")
    long = "one letter after the other " * 4
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n1.png,{long}\n")
    assert main(options(place, tmp_path / "out", data=tmp_path)) == 0
    said = "the text encoder takes 18 tokens, and of the 1 captions 1 have more"
    assert said in capsys.readouterr().err
    assert Pipeline(tmp_path / "out", device="cpu").generate("", seed=0).images


def test_too_little_memory_is_told(place, tmp_path, refused, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 exabytes")

    monkeypatch.setattr("sdpipe.training.train.new_model", full)
    assert "out of memory; train with a smaller --dim" in refused(options(place, tmp_path / "x"), 1)


def test_pictures_are_all_read_before_training(place, tmp_path, refused):
    data = write_pictures(tmp_path / "data")
    (data / "green.png").write_bytes((data / "green.png").read_bytes()[:60])
    said = refused(options(place, tmp_path / "out", data=data))
    assert "metadata.jsonl, line 3: the picture green.png cannot be read: " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "say what to train on: either emoji, .* or --data with a folder of pictures."),
        ("emoji --data x", "not both"),
        ("pictures", "'pictures' is nothing to train on; say emoji"),
        ("emoji --from emoji", "from='emoji' goes on with pictures of your own"),
        ("--data x", "say with --out where the model goes"),
        ("--data x --out y --dim 100", "dim=100 is not a multiple of 8"),
        ("--data x --out y --dim 72", "dim=72 is not a multiple of 32"),
        ("--data x --out y --steps 0", "steps=0"),
        ("--data x --out y --seed -1", "seed=-1"),
        ("--data x --out y --device tpu", "device='tpu'"),
        ("--data x --out y --recipe none.toml", "the recipe none.toml cannot be read"),
        ("--data x --out y", "data='x' is not a folder"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(refused, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(["train", *arguments.split()])
    assert re.search(message, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "tables", [{"vae": {"norm_num_groups": 3}}, {"text": {"num_attention_heads": 3}}]
)
def test_networks_that_cannot_be_built_are_refused(place, tmp_path, refused, tables):
    recipe = recipe_with(tmp_path / "recipe.toml", **tables)
    said = refused(options(place, tmp_path / "out", recipe=recipe))
    assert said.startswith("the recipe asks for networks that cannot be: ")
    assert not (tmp_path / "out").exists()


def test_the_built_in_model_is_trained_on_scenes(place, tmp_path, monkeypatch, capsys):
    inks = {}
    for colour in COLOURS:
        ink = Image.new("RGBA", (glyphs.SIDE, glyphs.SIDE))
        ImageDraw.Draw(ink).ellipse((4, 4, 132, 132), fill=colour)
        inks[f"{colour} disc"] = ink.convert("RGBa")
    monkeypatch.setattr(glyphs, "render_all", lambda: inks)
    monkeypatch.chdir(tmp_path)
    command = ["train", "emoji", "--recipe", str(place / "recipe.toml"), "--device", "cpu"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out == "runs/emoji\n"
    assert "3 glyphs, 12 pictures" in err
    assert (tmp_path / "runs/emoji/training/samples/unet-000006.png").exists()
    pipe = Pipeline(Path("runs/emoji"), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SdpipeWarning)
        assert pipe.generate("small red disc on the left", seed=0).images
    with pytest.warns(SdpipeWarning, match='did you mean "red disc"'):
        pipe.generate("red dsic", seed=0)
    assert main(["names", "red", "--model", "runs/emoji"]) == 0
    assert capsys.readouterr().out == "red disc\n"
    assert main([*command, "--seed", "2"]) == 2
    assert "seed was 1 and is 2 now" in capsys.readouterr().err
    inks["red disc"] = inks["blue disc"]
    assert main(command) == 2
    assert "the font has changed" in capsys.readouterr().err


@pytest.fixture
def start(tmp_path):
    """A model to go on from, with settings of its own."""
    folder = tiny_model(tmp_path / "start", dtype=torch.float16)
    (folder / "sdpipe.json").write_text('{"g": 2.5, "steps": 4, "scheduler": "ddim"}')
    return folder


def test_a_model_goes_on_learning(place, start, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(options(place, out, **{"from": start})) == 0
    before, after = weights(start), weights(out)
    before = {k.replace("text_encoder.text_model.", "text_encoder."): v for k, v in before.items()}
    after = {k.replace("text_encoder.text_model.", "text_encoder."): v for k, v in after.items()}
    assert before.keys() == after.keys()
    changed = {k for k in after if not torch.equal(before[k], after[k])}
    assert {k.partition(".")[0] for k in changed} == {"unet", "text_encoder"}
    assert len([k for k in changed if k.startswith("unet.")]) > 50

    theirs, ours = (json.loads((m / "model_index.json").read_text()) for m in (start, out))
    assert ours["scheduler"] == theirs["scheduler"] == ["diffusers", "PNDMScheduler"]
    name = "scheduler/scheduler_config.json"
    assert json.loads((out / name).read_text()) == json.loads((start / name).read_text())
    assert json.loads((out / "sdpipe.json").read_text())["scheduler"] == "ddim"
    name = "vae/config.json"
    scales = [
        json.loads((m / name).read_text()).get("scaling_factor", 0.18215) for m in (start, out)
    ]
    assert scales[0] == scales[1]
    rows = (out / "training" / "loss.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows] == [["stage", "step"], ["unet", "3"]]
    settings = Pipeline(out, device="cpu", dtype="float32").generate("a red cat").settings[0]
    assert (settings.width, settings.g, settings.scheduler) == (32, 2.5, "ddim")
    StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    assert not (out / "words.json").exists()  # of a model that may know any word

    capsys.readouterr()
    other = tiny_model(tmp_path / "other", seed=1)
    assert main(options(place, out, **{"from": other})) == 2
    assert "it went on from " in capsys.readouterr().err


def test_a_model_goes_on_at_another_size(place, start, tmp_path):
    (start / "words.json").write_text('{"names": ["cat"], "words": ["a", "cat"]}')
    assert main(options(place, tmp_path / "out", dim=48, **{"from": start})) == 0
    pipe = Pipeline(tmp_path / "out", device="cpu")
    settings = pipe.generate("a red cat", steps=2).settings[0]
    assert (settings.width, settings.height) == (48, 48)
    assert pipe.components.learned is not None
    assert pipe.components.learned.names == ("cat",)
    assert pipe.components.learned.words == {"a", "blue", "cat", "green", "red", "square"}


def test_a_model_that_learns_otherwise_is_refused(place, start, tmp_path, refused):
    path = start / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    command = options(place, tmp_path / "out", **{"from": start})
    path.write_text(json.dumps({**config, "prediction_type": "sample"}))
    assert "predicts sample, and training here is for" in refused(command, 1)
    path.write_text(json.dumps({**config, "beta_schedule": "linear"}))
    assert "noise schedule linear" in refused(command, 1)
    path.write_text(json.dumps(config))
    unet = json.loads((start / "unet/config.json").read_text())
    two = {**unet, "addition_embed_type": "text_time"}
    (start / "unet/config.json").write_text(json.dumps(two))
    assert "as Stable Diffusion XL does" in refused(command, 1)
    (start / "unet/config.json").write_text(json.dumps(unet))
    (start / "sdpipe.json").write_text('{"width": 64}')
    assert "draws 64 x 32 pixels, and training is on squares" in refused(command)
    missing = options(place, tmp_path / "out", **{"from": "none/such/model"})
    assert "does not exist" in refused(missing, 1)
    assert not (tmp_path / "out").exists()


def note_what_is_trained(folder):
    """Has every process write down its first batch of each stage, and the weights at its end."""
    from sdpipe.training import train

    real, rank = train.fit, os.environ["RANK"]

    def noting(name, model, batch, *arguments, **named):
        drawn = [x.double().sum().item() for step in range(6) for x in batch(step)]
        real(name, model, batch, *arguments, **named)
        total = [p.double().abs().sum().item() for p in model.parameters()]
        (folder / f"{name}-{rank}.json").write_text(json.dumps([drawn, total]))

    train.fit = noting


def test_two_processes_train_one_model(place, model, tmp_path):
    code = (
        "import pathlib, sys, test_train; from sdpipe.cli import main;"
        "test_train.note_what_is_trained(pathlib.Path(sys.argv.pop(1))); sys.exit(main())"
    )
    (tmp_path / "two.py").write_text(code)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [str(tmp_path / "two.py"), str(tmp_path), *options(place, tmp_path / "out")]
    done = python(*words, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert done.stderr.count("3 captioned pictures") == 1
    assert done.stderr.count("draw with it") == 1
    for stage in STAGES:
        (drawn, total), (other, same) = (
            json.loads((tmp_path / f"{stage}-{rank}.json").read_text()) for rank in (0, 1)
        )
        assert total == same
        assert drawn != other
    ours, alone = weights(tmp_path / "out"), weights(model)
    assert ours.keys() == alone.keys()
    assert {t.shape for t in ours.values()} == {t.shape for t in alone.values()}
    rows = (tmp_path / "out" / "training" / "loss.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [[k, str(n)] for k, n in STAGES.items()]
