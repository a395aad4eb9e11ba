"""What `train` refuses, before it has trained and without touching what is there."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.tiny import tiny_model
from support.training_run import COLOURS, options, recipe_with, write_pictures

# A model of six steps draws nothing yet, and lms, which it prefers, takes that badly.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")


def test_another_run_is_not_gone_on_with(material, trained, tmp_path, refused):
    """By what differs; and nothing there is touched."""
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
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
        told = refused(options(material, trained, **changes))
        assert told.startswith(f"{trained} holds a run that was begun otherwise: "), told
        assert message in told
        assert told.endswith("choose another --out.")
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()} == before


def test_what_is_no_run_is_not_written_into(material, tmp_path, refused):
    (tmp_path / "file").touch()
    assert "is not a folder" in refused(options(material, tmp_path / "file"))
    assert "is not empty" in refused(options(material, tmp_path))
    tiny_model(tmp_path / "model")
    assert "is not empty" in refused(options(material, tmp_path / "model"))
    assert "file/out cannot be written (Not a directory)" in refused(
        options(material, tmp_path / "file" / "out")
    )
    (tmp_path / "run" / "training").mkdir(parents=True)
    (tmp_path / "run" / "training" / "run.json").write_text("{")
    assert "run.json cannot be read" in refused(options(material, tmp_path / "run"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that root can't write")
def test_a_folder_that_cannot_be_written_is_refused_before_training(material, refused):
    assert "/proc/out cannot be written (" in refused(options(material, "/proc/out"))


def test_too_little_memory_is_told(material, tmp_path, refused, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 exabytes")

    monkeypatch.setattr("sdpipe.training.train.new_model", full)
    assert "out of memory; train with a smaller --dim" in refused(
        options(material, tmp_path / "x"), 1
    )


def test_pictures_are_all_read_before_training(material, tmp_path, refused):
    data = write_pictures(tmp_path / "data")
    (data / "green.png").write_bytes((data / "green.png").read_bytes()[:60])
    said = refused(options(material, tmp_path / "out", data=data))
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
def test_networks_that_cannot_be_built_are_refused(material, tmp_path, refused, tables):
    recipe = recipe_with(tmp_path / "recipe.toml", **tables)
    said = refused(options(material, tmp_path / "out", recipe=recipe))
    assert said.startswith("the recipe asks for networks that cannot be: ")
    assert not (tmp_path / "out").exists()


def test_a_model_that_learns_otherwise_is_refused(material, start, tmp_path, refused):
    path = start / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    command = options(material, tmp_path / "out", **{"from": start})
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
    missing = options(material, tmp_path / "out", **{"from": "none/such/model"})
    assert "does not exist" in refused(missing, 1)
    assert not (tmp_path / "out").exists()
