"""A training small enough for tests: its recipe, its pictures, its command."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

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
cycles = 2
steps = 2
batch = 4
warmup = 1
[spelling]
taken = 0.75
steps = 2
batch = 4
[reading]
train_text_encoder = false
steps = 2
batch = 4
warmup = 1
[placing]
captions = 2
rivals = 3
rivals_weight = 0.1
rivals_early = 0.5
rivals_hard = 0.5
taken = 0.8
steps = 2
batch = 2
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
    "both2": 2,
    "spelling": 2,
    "reading": 2,
    "placing": 2,
}
COLOURS = ("red", "blue", "green")


def write_pictures(folder, colours=COLOURS):
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w") as file:
        for colour in colours:
            Image.new("RGB", (40, 36), colour).save(folder / f"{colour}.png")
            line = {"file_name": f"{colour}.png", "text": f"a {colour} square"}
            file.write(json.dumps(line) + "\n")
    return folder


def options(place, out, **changes):
    given = {"data": place / "data", "recipe": place / "recipe.toml", "device": "cpu", **changes}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return ["train", *words, f"--out={out}"]


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


def python(*words, launcher=(), **environment):
    folder = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, *launcher, *words],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": folder, **environment},
    )
