"""`train` from its recipe to a folder that draws, on a few shapes in place of the font's glyphs."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from sdpipe import Pipeline
from sdpipe.training import train as training
from sdpipe.training.fit import fit

RECIPE = """
seed = 1
[pictures]
size = 32
renderings = 2
on_white = 0.5
scale = [0.9, 1.0]
shift = 0.02
blocks = []
also = []
leave_out = []
[tokenizer]
vocabulary = 560
length = 12
[vae]
block_out_channels = [8, 8, 16]
layers_per_block = 1
latent_channels = 4
norm_num_groups = 4
crop = 16
steps = 4
batch = 2
learning_rate = 1e-3
edges = 0.5
kl = 1e-3
[text]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
steps = 4
batch = 4
learning_rate = 1e-3
[unet]
block_out_channels = [16, 16]
layers_per_block = 1
attention_head_dim = 2
norm_num_groups = 4
beta_start = 0.00085
beta_end = 0.012
timesteps = 1000
dropped = 0.1
weight = 60.0
steps = 6
batch = 2
learning_rate = 1e-3
warmup = 2
ema = 0.9
[decoder]
steps = 4
batch = 2
learning_rate = 1e-3
[sampling]
g = 2.0
steps = 5
lms_order = 1
"""


def shapes(_recipe):
    drawn = {}
    for name, colour in (("red circle", "red"), ("blue box", "blue"), ("leaf", "green")):
        sheet = Image.new("RGBA", (136, 136))
        ImageDraw.Draw(sheet).ellipse((20, 20, 116, 116), fill=colour)
        drawn[name] = sheet.convert("RGBa")
    return drawn


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_rendered", shapes)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def weights(model):
    return {
        part: load_file(next((model / part).glob("*.safetensors")))
        for part in ("unet", "vae", "text_encoder")
    }


class KilledError(Exception):
    pass


@pytest.mark.filterwarnings("ignore:the latents grew")  # after six steps it draws nothing yet
def test_a_model_is_trained_resumed_and_drawn_with(recipe, tmp_path, monkeypatch):
    straight = training.train(recipe, tmp_path / "straight", device="cpu")

    # The same, killed in the middle of the U-Net and started again.
    def stumbling(name, model, loss, folder, *, steps, **options):
        def dies(step):
            if step == 3:
                raise KilledError
            return loss(step)

        return fit(name, model, dies if name == "unet" else loss, folder, steps=steps, **options)

    monkeypatch.setattr("sdpipe.training.fit.SAVE_EVERY", 0.0)
    monkeypatch.setattr(training, "fit", stumbling)
    with pytest.raises(KilledError):
        training.train(recipe, tmp_path / "resumed", device="cpu")
    monkeypatch.setattr(training, "fit", fit)
    resumed = training.train(recipe, tmp_path / "resumed", device="cpu")
    for part, tensors in weights(straight).items():
        for name, tensor in weights(resumed)[part].items():
            assert torch.equal(tensor, tensors[name]), (part, name)
            assert tensor.dtype == torch.float16

    pipe = Pipeline(straight, dtype="float32", device="cpu")
    result = pipe.generate("red circle on a blue background", seed=0)
    assert result.images[0].size == (32, 32)
    assert (result.settings[0].g, result.settings[0].steps) == (2.0, 5)
    assert result.settings[0].lms_order == 1
    assert json.loads((straight / "sdpipe.json").read_text())["lms_order"] == 1
    scale = pipe.components.vae.config.scaling_factor
    encoded = load_file(tmp_path / "straight" / "training" / "latents.safetensors")["latents"]
    assert scale == pytest.approx(1 / encoded.std().item())

    theirs = StableDiffusionPipeline.from_pretrained(straight, local_files_only=True)
    assert type(theirs.unet).__name__ == "UNet2DConditionModel"
