"""Whole trainings: from images to a folder that draws, from a model, in two processes."""

import json
import stat
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support.errors import raises
from support.inks import disc
from support.tiny import tiny_model
from support.training_run import (
    COLOURS,
    RECIPE,
    STAGES,
    job,
    options,
    python,
    recipe_with,
    weights,
    write_images,
)

from sdpipe import Pipeline, SdpipeError, SdpipeWarning, UsageError
from sdpipe.cli.app import main
from sdpipe.io.claims import claim
from sdpipe.training.emoji.dataset import EmojiDataset
from sdpipe.training.job import plan_job
from sdpipe.training.train import train

# After so few steps the U-Net's output is noise, which LMS does not integrate well.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")


def test_a_folder_of_images_becomes_a_model(material, trained, tmp_path, capsys, monkeypatch):
    capsys.readouterr()
    assert main(options(material, trained)) == 0  # finished: it only writes the model again
    out, err = capsys.readouterr()
    assert out == f"{trained}\n"
    assert err.startswith("sdpipe: 3 captioned images, 32 x 32\n")
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
    with Image.open(capsys.readouterr().out.strip()) as image:
        assert image.size == (32, 32)
    pipe = Pipeline(trained, device="cpu", dtype="float32")
    settings = pipe.generate("a red square", seed=0).settings[0]
    assert (settings.g, settings.steps, settings.lms_order) == (2.0, 5, 1)
    encoded = load_file(trained / "training" / "latents.safetensors")["latents"]
    scale = pipe.components.vae.config.scaling_factor
    assert scale == pytest.approx(1 / encoded.float().std().item())
    assert {tensor.dtype for tensor in weights(trained).values()} == {torch.float16}
    with safe_open(trained / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert file.metadata()["modelspec.title"] == trained.name
        assert file.metadata()["modelspec.resolution"] == "32x32"

    theirs = StableDiffusionPipeline.from_pretrained(trained, local_files_only=True)
    assert type(theirs.unet).__name__ == "UNet2DConditionModel"
    theirs.set_progress_bar_config(disable=True)
    drawn = theirs("a red square", num_inference_steps=2, height=32, width=32).images[0]
    assert drawn.size == (32, 32)


@pytest.mark.slow
def test_a_model_draws_what_it_has_learned(tmp_path):
    """Two colours and their names need every part between caption and image."""
    recipe = recipe_with(
        tmp_path / "recipe.toml",
        short=True,
        vae={
            "block_out_channels": [16] * 4,
            "norm_num_groups": 1,  # more groups would remove the colour of a plain image
            "steps": 50,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "full_image_fraction": 0.0,
            "ema_decay": 0.95,
        },
        text_encoder={
            "hidden_size": 32,
            "steps": 30,
            "batch_size": 16,
            "muon_learning_rate": 1e-2,
        },
        unet={
            "block_out_channels": [32, 32],
            "norm_num_groups": 8,
            "steps": 60,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "muon_learning_rate": 0.0,  # AdamW is as good at this size
            "warmup_steps": 10,
            "ema_decay": 0.95,
        },
        samples={"images": 0},
    )
    data = write_images(tmp_path / "data", ("red", "blue"))
    command = options(tmp_path, tmp_path / "out", data=data, recipe=recipe, seed=1)
    assert main(command) == 0
    assert not (tmp_path / "out/training/samples").exists()
    pipe = Pipeline(tmp_path / "out", device="cpu", dtype="float32")

    def redness(caption):
        drawn = pipe.generate(caption, n=4, seed=0, g=3, steps=8, scheduler="ddim").images
        red, _, blue = np.mean([np.asarray(image) for image in drawn], axis=(0, 1, 2))
        return red - blue  # 255 for the red image itself

    assert redness("a red square") > 100
    assert redness("a blue square") < -100
    assert pipe.components.scheduler_config["prediction_type"] == "v_prediction"


def test_the_folder_of_a_run_has_log_checkpoints_and_samples(trained):
    training = trained / "training"
    names = {path.name for path in training.iterdir()}
    assert names == {
        *("run.json", "recipe.toml", "loss.csv", "images.rgb", "samples"),
        *("latents.safetensors", "hard_negatives.safetensors"),
        *(f"{stage}.checkpoint" for stage in STAGES),
    }
    assert (training / "recipe.toml").read_text() == RECIPE
    rows = [line.split(",")[:2] for line in (training / "loss.csv").read_text().splitlines()]
    assert rows == [["stage", "step"], *([stage, str(steps)] for stage, steps in STAGES.items())]
    modes = {stat.S_IMODE(p.stat().st_mode) for p in trained.rglob("*") if p.is_file()}
    assert len(modes) == 1
    samples = sorted(path.name for path in (training / "samples").iterdir())
    drawing = {"unet", "joint", "joint_paraphrases", "joint_paraphrases2", "unet_adaptation"}
    assert samples == sorted(
        f"{stage}-{step:06}.png"
        for stage in drawing | {"hard_negatives"}
        for step in (1, STAGES[stage])
    )
    with Image.open(training / "samples" / samples[0]) as image:
        assert image.width > 2 * 128  # two captions, small images enlarged four times


def test_the_text_encoder_learns_in_all_stages_but_those_of_the_unet(trained):
    name = "encoder.layers.0.mlp.fc1.weight"

    def ends(stage, part, *, teacher=False):
        state = torch.load(trained / "training" / f"{stage}.checkpoint")[part]
        [weight, *again] = [
            weight
            for key, weight in state.items()
            if key.endswith(name) and teacher == (".teacher." in f".{key}")
        ]
        assert all(torch.equal(weight, other) for other in again)
        return weight

    alone, frozen = ends("text_encoder", "model"), ends("unet", "model")
    joint, words = ends("joint", "average"), ends("paraphrases", "model")
    first, second = ends("joint_paraphrases", "average"), ends("joint_paraphrases2", "average")
    typos, adapted = ends("typos", "model"), ends("unet_adaptation", "average")
    [shipped] = [w for key, w in weights(trained).items() if key.startswith("text") and name in key]
    assert torch.equal(alone, frozen)
    assert not torch.equal(frozen, joint)
    assert torch.equal(joint, ends("paraphrases", "model", teacher=True))
    assert not torch.equal(joint, words)
    assert torch.equal(words, ends("joint_paraphrases", "model", teacher=True))
    assert not torch.equal(words, first)
    assert torch.equal(first, ends("joint_paraphrases2", "model", teacher=True))
    assert not torch.equal(first, second)
    mean = (first + second) / 2
    assert torch.allclose(mean, ends("typos", "model", teacher=True))
    assert not torch.equal(mean, typos)
    assert torch.allclose(torch.lerp(mean, typos, 0.75), adapted)
    assert torch.equal(adapted, ends("hard_negatives", "model", teacher=True))
    last = ends("hard_negatives", "average")
    assert not torch.equal(adapted, last)
    assert torch.allclose(torch.lerp(adapted, last, 0.8).half(), shipped, atol=1e-4)
    assert not torch.equal(last.half(), shipped)


def test_the_unet_learns_in_the_later_stages(trained):
    name = "module.unet.mid_block.resnets.0.conv1.weight"

    def end(stage):
        return torch.load(trained / "training" / f"{stage}.checkpoint")["average"][name]

    first, second, adapted = map(
        end, ("joint_paraphrases", "joint_paraphrases2", "unet_adaptation")
    )
    assert not torch.equal(end("joint"), first)
    assert not torch.equal(first, second)
    assert not torch.equal((first + second) / 2, adapted)
    assert not torch.equal(adapted, end("hard_negatives"))


def test_one_image_is_enough(short, tmp_path, capsys):
    Image.new("RGBA", (9, 7), (0, 0, 0, 0)).save(tmp_path / "1.png")
    long = "one letter after the other " * 4
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n1.png,{long}\n")
    assert main(options(short, tmp_path / "out", data=tmp_path)) == 0
    assert "1 of 1 captions have more than the 18 tokens" in capsys.readouterr().err
    assert Pipeline(tmp_path / "out", device="cpu").generate("", seed=0).images


def test_the_built_in_model_is_trained_on_scenes(material, tmp_path, capsys):
    inks = {f"{colour} disc": disc(colour) for colour in COLOURS}
    out, lines = tmp_path / "emoji", []

    def run(inks, **changes):
        emoji = plan_job("emoji", recipe=material / "recipe.toml", out=out, device="cpu", **changes)
        dataset = EmojiDataset(emoji.recipe.scenes, 32, emoji.recipe.seed, inks)
        return train(emoji, dataset=dataset, log=lines.append)

    assert run(inks) == out
    assert lines == ["3 glyphs, 12 images"]
    assert (out / "training/samples/unet-000006.png").exists()
    pipe = Pipeline(out, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SdpipeWarning)
        assert pipe.generate("small red disc on the left", seed=0).images
    with pytest.warns(SdpipeWarning, match='did you mean "red disc"'):
        pipe.generate("red dsic", seed=0)
    assert main(["names", "red", "--model", str(out)]) == 0
    assert capsys.readouterr().out == "red disc\n"
    with raises(UsageError, rule="seed was 1 and is now 2"):
        run(inks, seed=2)
    with raises(UsageError, rule="the font has changed"):
        run({**inks, "red disc": inks["blue disc"]})


def test_a_model_is_fine_tuned(material, start, tmp_path, capsys):
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
    ours, theirs = (json.loads((m / name).read_text()) for m in (out, start))
    assert ours == theirs
    assert json.loads((out / "sdpipe.json").read_text())["scheduler"] == "ddim"
    name = "vae/config.json"
    scales = [
        json.loads((m / name).read_text()).get("scaling_factor", 0.18215) for m in (start, out)
    ]
    assert scales[0] == scales[1]
    rows = (out / "training" / "loss.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows] == [["stage", "step"], ["finetuning", "3"]]
    settings = Pipeline(out, device="cpu", dtype="float32").generate("a red cat").settings[0]
    assert (settings.width, settings.g, settings.scheduler) == (32, 2.5, "ddim")
    StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    assert not (out / "words.json").exists()  # the model may know any word

    capsys.readouterr()
    other = tiny_model(tmp_path / "other", seed=1)
    assert main(options(material, out, **{"from": other})) == 2
    assert "it started from " in capsys.readouterr().err


def test_a_model_is_fine_tuned_at_another_size(material, start, tmp_path):
    (start / "words.json").write_text('{"names": ["cat"], "words": ["a", "cat"]}')
    assert main(options(material, tmp_path / "out", dim=48, **{"from": start})) == 0
    pipe = Pipeline(tmp_path / "out", device="cpu")
    settings = pipe.generate("a red cat", steps=2).settings[0]
    assert (settings.width, settings.height) == (48, 48)
    assert pipe.components.vocabulary is not None
    assert pipe.components.vocabulary.names == ("cat",)
    assert pipe.components.vocabulary.words == {"a", "blue", "cat", "green", "red", "square"}


@pytest.mark.slow
def test_two_processes_train_one_model(material, trained, tmp_path):
    script = str(Path(__file__).parents[1] / "support" / "two_processes.py")
    recipe = recipe_with(tmp_path / "recipe.toml", samples={"images": 0})
    words = options(material, tmp_path / "out", recipe=recipe)
    done = python(script, str(tmp_path), *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert done.stderr.count("3 captioned images") == 1
    assert done.stderr.count("draw with it") == 1
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(steps) for steps in ranks] == [sum(STAGES.values())] * 2
    for name, count in STAGES.items():
        ours, theirs = (rank[:count] for rank in ranks)
        assert [weight_sum for _, weight_sum in ours] == [weight_sum for _, weight_sum in theirs]
        assert ours != theirs, f"{name}: both processes draw the same batches"
        ranks = [rank[count:] for rank in ranks]
    ours, alone = weights(tmp_path / "out"), weights(trained)
    assert ours.keys() == alone.keys()
    assert {t.shape for t in ours.values()} == {t.shape for t in alone.values()}
    rows = (tmp_path / "out" / "training" / "loss.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [[k, str(n)] for k, n in STAGES.items()]


def test_too_little_memory_is_reported(material, tmp_path):
    def full(*report):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 exabytes")

    with raises(SdpipeError, value="cpu", rule="is out of memory", remedy="a smaller --dim"):
        train(job(material, tmp_path / "out"), progress=full)


def test_all_images_are_read_before_training(material, tmp_path):
    data = write_images(tmp_path / "data")
    (data / "green.png").write_bytes((data / "green.png").read_bytes()[:60])
    with raises(UsageError, value="metadata.jsonl, line 3: the image green.png"):
        train(job(material, tmp_path / "out", data=data))
    assert not (tmp_path / "out").exists()


def test_another_run_is_not_continued(material, trained, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    seen = write_images(tmp_path / "seen")
    Image.new("RGB", (40, 36), "navy").save(seen / "blue.png")
    fewer = write_images(tmp_path / "fewer", COLOURS[:2])
    recipe = recipe_with(tmp_path / "recipe.toml", vae__ema_decay=0.8)
    for changes, difference in (
        ({"recipe": recipe}, "vae.ema_decay was 0.9 and is now 0.8"),
        ({"steps": 12}, "vae.steps was 4 and is now 8"),
        ({"dim": 64}, "size was 32 and is now 64"),
        ({"data": fewer}, "green.png is no longer in the data"),
        ({"data": seen}, "blue.png has changed"),
    ):
        with raises(UsageError, value=str(trained), rule=difference, remedy="another --out"):
            train(job(material, trained, **changes))
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()} == before


def test_a_folder_in_which_another_process_trains_is_refused(material, tmp_path):
    out = tmp_path / "out"
    with (
        claim(tmp_path, ["out"]),
        raises(UsageError, value="out=", rule="another process trains", remedy="choose another"),
    ):
        train(job(material, out))
    assert list(tmp_path.iterdir()) == []
