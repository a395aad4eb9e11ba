"""`train` from pictures to a folder that draws: from nothing, from a model, on two processes."""

import itertools
import json
import os
import stat
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from support.tiny import tiny_model
from support.training_run import (
    COLOURS,
    RECIPE,
    STAGES,
    options,
    python,
    recipe_with,
    weights,
    write_pictures,
)

from sdpipe import Pipeline, SdpipeWarning
from sdpipe.cli.app import main
from sdpipe.training.emoji import glyphs
from sdpipe.training.recipe import Samples
from sdpipe.training.samples import Sheets, sheet

# A model of six steps draws nothing yet, and lms, which it prefers, takes that badly.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")


def test_a_folder_of_pictures_becomes_a_model(material, trained, tmp_path, capsys, monkeypatch):
    capsys.readouterr()
    assert main(options(material, trained)) == 0  # finished: it is only written again
    out, err = capsys.readouterr()
    assert out == f"{trained}\n"
    assert err.startswith("sdpipe: 3 captioned pictures, 32 x 32\n")
    assert err.endswith(f"sdpipe: draw with it: sdpipe generate 'a red square' --model {trained}\n")
    assert "shards" not in err

    monkeypatch.chdir(tmp_path)
    drawing = [
        "generate",
        "a red square",
        "--model",
        str(trained),
        "--seed",
        "0",
        "--device",
        "cpu",
    ]
    assert main([*drawing, "--dtype", "float32"]) == 0
    with Image.open(capsys.readouterr().out.strip()) as picture:
        assert picture.size == (32, 32)
    pipe = Pipeline(trained, device="cpu", dtype="float32")
    settings = pipe.generate("a red square", seed=0).settings[0]
    assert (settings.g, settings.steps, settings.lms_order) == (2.0, 5, 1)
    encoded = load_file(trained / "training" / "latents.safetensors")["latents"]
    scale = pipe.components.vae.config.scaling_factor
    assert scale == pytest.approx(1 / encoded.float().std().item())
    assert {tensor.dtype for tensor in weights(trained).values()} == {torch.float16}

    theirs = StableDiffusionPipeline.from_pretrained(trained, local_files_only=True)
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
            "steps": 80,
            "batch": 16,
            "learning_rate": 3e-3,
            "whole": 0.0,
            "ema": 0.95,
        },
        text={"hidden_size": 32, "steps": 40, "batch": 16, "muon_rate": 1e-2},
        unet={
            "block_out_channels": [32, 32],
            "norm_num_groups": 8,
            "steps": 80,
            "batch": 16,
            "learning_rate": 3e-3,
            "muon_rate": 0.0,  # AdamW is as good at this size, and does without bfloat16
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


def test_what_stands_in_the_folder(trained):
    training = trained / "training"
    names = {path.name for path in training.iterdir()}
    assert names == {
        *("run.json", "recipe.toml", "loss.csv", "pictures.rgb", "samples"),
        *("latents.safetensors", "rivals.safetensors"),
        *(f"{stage}.checkpoint" for stage in STAGES),
    }
    assert (training / "recipe.toml").read_text() == RECIPE
    rows = [line.split(",")[:2] for line in (training / "loss.csv").read_text().splitlines()]
    assert rows == [["stage", "step"], *([stage, str(steps)] for stage, steps in STAGES.items())]
    modes = {stat.S_IMODE(p.stat().st_mode) for p in trained.rglob("*") if p.is_file()}
    assert len(modes) == 1  # whoever may read one file of it may read all
    samples = sorted(path.name for path in (training / "samples").iterdir())
    assert samples == [
        f"{stage}-{STAGES[stage]:06}.png"
        for stage in ("both", "both2", "joint", "placing", "reading", "unet")
    ]
    with Image.open(training / "samples" / samples[0]) as picture:
        assert picture.width > 2 * 128  # two captions, small pictures four times as large


def test_the_text_encoder_learns_in_all_stages_but_the_unets_own(trained):
    name = "encoder.layers.0.mlp.fc1.weight"

    def ends(stage, part, *, before=False):
        state = torch.load(trained / "training" / f"{stage}.checkpoint")[part]
        [weight, *again] = [
            weight
            for key, weight in state.items()
            if key.endswith(name) and before == (".before." in f".{key}")
        ]
        assert all(torch.equal(weight, other) for other in again)
        return weight

    alone, frozen = ends("text", "model"), ends("unet", "model")
    joint, words = ends("joint", "average"), ends("other_words", "model")
    both, again = ends("both", "average"), ends("both2", "average")
    spelling, reading = ends("spelling", "model"), ends("reading", "average")
    [shipped] = [w for key, w in weights(trained).items() if key.startswith("text") and name in key]
    assert torch.equal(alone, frozen)
    assert not torch.equal(frozen, joint)
    assert torch.equal(joint, ends("other_words", "model", before=True))
    assert not torch.equal(joint, words)
    assert torch.equal(words, ends("both", "model", before=True))
    assert not torch.equal(words, both)
    assert torch.equal(both, ends("both2", "model", before=True))
    assert not torch.equal(both, again)
    mean = (both + again) / 2
    assert torch.allclose(mean, ends("spelling", "model", before=True))
    assert not torch.equal(mean, spelling)
    assert torch.allclose(torch.lerp(mean, spelling, 0.75), reading)
    assert torch.equal(reading, ends("placing", "model", before=True))
    placing = ends("placing", "average")
    assert not torch.equal(reading, placing)
    assert torch.allclose(torch.lerp(reading, placing, 0.8).half(), shipped, atol=1e-4)
    assert not torch.equal(placing.half(), shipped)


def test_the_unet_learns_on_in_the_last_stages(trained):
    name = "unet.mid_block.resnets.0.conv1.weight"
    weights_of = [
        torch.load(trained / "training" / f"{stage}.checkpoint")["average"][f"module.{name}"]
        for stage in ("joint", "both", "both2", "reading", "placing")
    ]
    joint, both, again, reading, placing = weights_of
    assert not torch.equal(joint, both)
    assert not torch.equal(both, again)
    assert not torch.equal((both + again) / 2, reading)
    assert not torch.equal(reading, placing)


def test_a_sheet_has_the_image_of_the_data_above_the_drawing():
    colors = {(255, 0, 0): "red", (0, 128, 0): "green", (0, 0, 255): "blue"}
    cells = [Image.new("RGB", (64, 64), color) for color in colors]
    pixels = np.asarray(sheet(cells, cells[::-1], ["one", "two \N{SNOWMAN}", "word " * 40]))
    found = [[colors[p] for p in map(tuple, row.tolist()) if p in colors] for row in pixels]
    rows = [row for row, _ in itertools.groupby(list(dict.fromkeys(row)) for row in found) if row]
    assert rows == [["red", "green", "blue"], ["blue", "green", "red"]]


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


def test_one_picture_is_enough(material, tmp_path, capsys):
    Image.new("RGBA", (9, 7), (0, 0, 0, 0)).save(tmp_path / "1.png")
    long = "one letter after the other " * 4
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n1.png,{long}\n")
    assert main(options(material, tmp_path / "out", data=tmp_path)) == 0
    said = "the text encoder takes 18 tokens, and of the 1 captions 1 have more"
    assert said in capsys.readouterr().err
    assert Pipeline(tmp_path / "out", device="cpu").generate("", seed=0).images


def test_the_built_in_model_is_trained_on_scenes(material, tmp_path, monkeypatch, capsys):
    inks = {}
    for colour in COLOURS:
        ink = Image.new("RGBA", (glyphs.SIDE, glyphs.SIDE))
        ImageDraw.Draw(ink).ellipse((4, 4, 132, 132), fill=colour)
        inks[f"{colour} disc"] = ink.convert("RGBa")
    monkeypatch.setattr(glyphs, "render_all", lambda: inks)
    monkeypatch.chdir(tmp_path)
    command = ["train", "emoji", "--recipe", str(material / "recipe.toml"), "--device", "cpu"]
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


def test_a_model_goes_on_learning(material, start, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(options(material, out, **{"from": start})) == 0
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
    assert main(options(material, out, **{"from": other})) == 2
    assert "it went on from " in capsys.readouterr().err


def test_a_model_goes_on_at_another_size(material, start, tmp_path):
    (start / "words.json").write_text('{"names": ["cat"], "words": ["a", "cat"]}')
    assert main(options(material, tmp_path / "out", dim=48, **{"from": start})) == 0
    pipe = Pipeline(tmp_path / "out", device="cpu")
    settings = pipe.generate("a red cat", steps=2).settings[0]
    assert (settings.width, settings.height) == (48, 48)
    assert pipe.components.vocabulary is not None
    assert pipe.components.vocabulary.names == ("cat",)
    assert pipe.components.vocabulary.words == {"a", "blue", "cat", "green", "red", "square"}


def note_what_is_trained(folder):
    """Has every process write down its first batch of each stage, and the weights at its end."""
    from sdpipe.training import stages

    real, rank = stages.fit, os.environ["RANK"]

    def noting(name, model, batch, *arguments, **named):
        drawn = [x.double().sum().item() for step in range(6) for x in batch(step)]
        real(name, model, batch, *arguments, **named)
        total = [p.double().abs().sum().item() for p in model.parameters()]
        (folder / f"{name}-{rank}.json").write_text(json.dumps([drawn, total]))

    stages.fit = noting


def test_two_processes_train_one_model(material, trained, tmp_path):
    code = (
        "import pathlib, sys, test_train; from sdpipe.cli import main;"
        "test_train.note_what_is_trained(pathlib.Path(sys.argv.pop(1))); sys.exit(main())"
    )
    (tmp_path / "two.py").write_text(code)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [str(tmp_path / "two.py"), str(tmp_path), *options(material, tmp_path / "out")]
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
    ours, alone = weights(tmp_path / "out"), weights(trained)
    assert ours.keys() == alone.keys()
    assert {t.shape for t in ours.values()} == {t.shape for t in alone.values()}
    rows = (tmp_path / "out" / "training" / "loss.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [[k, str(n)] for k, n in STAGES.items()]
