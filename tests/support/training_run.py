"""A training small enough for tests: its recipe, its images, its command, and how it is stopped."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image
from safetensors.torch import load_file

from sdpipe.training.job import plan_job
from sdpipe.training.train import train

RECIPE = """
seed = 1
size = 32
[scenes]
images = 12
shares = [0.25, 0.25, 0.25, 0.25]
colour_fraction = 0.2
scale = [0.9, 1.0]
shift = 0.02
[tokenizer]
vocab_size = 560
max_length = 20
[vae]
block_out_channels = [8, 8, 8, 16]
layers_per_block = 1
latent_channels = 4
norm_num_groups = 4
crop_size = 16
full_image_fraction = 0.5
steps = 4
batch_size = 4
learning_rate = 1e-3
ema_decay = 0.9
edge_weight = 0.5
mse_weight = 1.0
kl_weight = 1e-3
decoder_steps = 2
decoder_learning_rate = 1e-3
decoder_mse_weight = 5.0
[text_encoder]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
grid_size = 4
caption_dropout = 0.1
paraphrase_fraction = 1.0
bpe_dropout = 0.1
steps = 3
batch_size = 4
learning_rate = 1e-3
muon_learning_rate = 1e-3
[unet]
block_out_channels = [16, 16]
layers_per_block = 1
attention_head_dim = 2
norm_num_groups = 4
beta_start = 0.00085
beta_end = 0.012
num_train_timesteps = 1000
prediction_type = "v_prediction"
max_loss_weight = 60.0
steps = 6
batch_size = 4
learning_rate = 1e-3
muon_learning_rate = 1e-3
warmup_steps = 2
ema_decay = 0.9
[joint]
steps = 3
batch_size = 4
learning_rate = 1e-3
warmup_steps = 1
ema_decay = 0.999
[refinement.paraphrases]
caption_dropout = 0.025
paraphrase_fraction = 0.8
bpe_dropout = 0.1
steps = 2
batch_size = 4
learning_rate = 4e-4
[refinement.joint_paraphrases]
paraphrases = 3
cycles = 2
steps = 2
batch_size = 4
learning_rate = 1e-3
warmup_steps = 1
ema_decay = 0.999
[refinement.typos]
caption_dropout = 0.025
paraphrase_fraction = 0.8
alpha = 0.75
steps = 2
batch_size = 4
learning_rate = 4e-4
[refinement.unet_adaptation]
train_text_encoder = false
steps = 2
batch_size = 4
learning_rate = 1e-3
warmup_steps = 1
ema_decay = 0.999
[refinement.hard_negatives]
paraphrases = 2
negatives = 3
contrastive_weight = 0.1
negative_timestep_exponent = 0.5
hard_fraction = 0.5
alpha = 0.8
steps = 2
batch_size = 2
learning_rate = 1e-3
warmup_steps = 1
ema_decay = 0.999
[finetuning]
steps = 3
batch_size = 2
[samples]
images = 2
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
    "text_encoder": 3,
    "unet": 6,
    "joint": 3,
    "paraphrases": 2,
    "joint_paraphrases": 2,
    "joint_paraphrases2": 2,
    "typos": 2,
    "unet_adaptation": 2,
    "hard_negatives": 2,
}
COLOURS = ("red", "blue", "green")


def write_images(folder, colours=COLOURS):
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


def recipe_with(path, *, short=False, **changes):
    """Writes the recipe with other values; names such as vae__steps are those of its tables.

    short: it ends with the U-Net's own stage.
    """
    lines = []
    values = tomllib.loads(RECIPE)
    if short:
        values["joint"]["steps"] = 0
        del values["refinement"]
    for name, value in changes.items():
        *tables, key = name.split("__")
        table = values
        for part in tables:
            table = table[part]
        table[key] = {**table[key], **value} if isinstance(value, dict) else value

    def write(table, prefix=""):
        for key, value in table.items():
            if not isinstance(value, dict):
                lines.append(f"{key} = {json.dumps(value)}")  # JSON's numbers and lists are TOML's
        for key, value in table.items():
            if isinstance(value, dict):
                lines.append(f"[{prefix}{key}]")
                write(value, f"{prefix}{key}.")

    write(values)
    path.write_text("\n".join(lines))
    return path


def job(place, out, **changes):
    """The same as `plan_job` has it."""
    given = {"data": place / "data", "recipe": place / "recipe.toml", "device": "cpu", **changes}
    return plan_job(out=out, **given)


def weights(model):
    return {
        f"{part}.{name}": tensor
        for part in PARTS
        for name, tensor in load_file(next((model / part).glob("*.safetensors"))).items()
    }


def assert_same_weights(model, other):
    ours, theirs = weights(model), weights(other)
    assert ours.keys() == theirs.keys()
    assert not [k for k in ours if not torch.equal(ours[k], theirs[k])]


@contextlib.contextmanager
def no_file_larger_than(size):
    """No file of this process can grow beyond `size`, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def saving_replaced(save):
    """Every checkpoint is written by `save(state, file, torch.save)`."""
    real = torch.save
    with patch("torch.save", lambda state, file: save(state, file, real)):
        yield


def die_while_saving(job, stage, step):
    """Trains in a fork of this process, which kills itself in the middle of a checkpoint; returns
    how it ended.

    The fork has imported what it needs, and this process has no threads.
    """

    def save(state, file, real):
        if (Path(file.name).name, state["step"]) == (f"{stage}.checkpoint.partial", step):
            file.write(b"PK")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real(state, file)

    child = os.fork()
    if not child:
        with saving_replaced(save):
            train(job, save_every=0)
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def keep_half_way(folder):
    """A `save` of `saving_replaced` that copies each stage's checkpoint of half its steps."""

    def save(state, file, real):
        real(state, file)
        name = Path(file.name).name.removesuffix(".partial")
        if state["step"] == STAGES[name.removesuffix(".checkpoint")] // 2:
            file.flush()
            shutil.copy(file.name, folder / name)

    return save


def python(*words, **environment):
    folder = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": folder, **environment},
    )
