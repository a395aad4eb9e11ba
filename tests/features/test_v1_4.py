"""v1-4's own configurations, built without weights: the numbers and names that its files have."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from sdpipe.latents import decode, vae_factor
from sdpipe.loading.compatibility import check_parts
from sdpipe.loading.configs import V1_4_SCHEDULER
from sdpipe.loading.sources import Sources

CONFIGURATIONS = Path(__file__).parents[1] / "support" / "v1_4"

UNET = {
    "conv_in.weight": (320, 4, 3, 3),
    "time_embedding.linear_1.weight": (1280, 320),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (320, 320),
    "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "down_blocks.0.attentions.0.proj_in.weight": (320, 320, 1, 1),
    "down_blocks.1.resnets.0.conv_shortcut.weight": (640, 320, 1, 1),
    "down_blocks.2.attentions.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
    "down_blocks.3.resnets.1.time_emb_proj.weight": (1280, 1280),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight": (1280, 768),
    "up_blocks.1.resnets.2.conv1.weight": (1280, 1920, 3, 3),
    "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0.bias": (320,),
    "up_blocks.2.upsamplers.0.conv.weight": (640, 640, 3, 3),
    "conv_norm_out.weight": (320,),
    "conv_out.weight": (4, 320, 3, 3),
}
VAE = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (256, 128, 1, 1),
    "encoder.mid_block.attentions.0.to_q.weight": (512, 512),
    "encoder.conv_out.weight": (8, 512, 3, 3),
    "quant_conv.weight": (8, 8, 1, 1),
    "post_quant_conv.weight": (4, 4, 1, 1),
    "decoder.conv_in.weight": (512, 4, 3, 3),
    "decoder.up_blocks.3.resnets.2.conv2.weight": (128, 128, 3, 3),
    "decoder.conv_out.weight": (3, 128, 3, 3),
}
TEXT = {
    "embeddings.token_embedding.weight": (49408, 768),
    "embeddings.position_embedding.weight": (77, 768),
    "encoder.layers.0.self_attn.q_proj.weight": (768, 768),
    "encoder.layers.11.mlp.fc1.weight": (3072, 768),
    "final_layer_norm.bias": (768,),
}


def config(part: str) -> dict[str, object]:
    return json.loads((CONFIGURATIONS / part / "config.json").read_text())


def unet() -> torch.nn.Module:
    return UNet2DConditionModel.from_config(config("unet"))


def vae() -> torch.nn.Module:
    return AutoencoderKL.from_config(config("vae"))


def text_encoder() -> torch.nn.Module:
    return CLIPTextModel(CLIPTextConfig.from_pretrained(CONFIGURATIONS / "text_encoder"))


@pytest.mark.parametrize(
    ("build", "parameters", "tensors", "shapes"),
    [
        (unet, 859_520_964, 686, UNET),
        (vae, 83_653_863, 248, VAE),
        (text_encoder, 123_060_480, 196, TEXT),
    ],
)
def test_the_classes_build_v1_4(build, parameters, tensors, shapes):
    with torch.device("meta"):
        state = build().state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert len(state) == tensors
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


@pytest.fixture
def sources(tmp_path):
    """v1-4's configurations as a model, whose weights nobody looks at, with so many other words."""
    from sdpipe.loading.layout import list_files, select_model
    from sdpipe.loading.locate import Location

    folder = tmp_path / "v1-4"
    shutil.copytree(CONFIGURATIONS, folder)
    words = [*(f"word{i}" for i in range(49406)), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    files = select_model(list_files(folder), weights=False)
    place = Location("v1-4", folder, files)
    return Sources(place, {}, dict.fromkeys(files.roots, place))


def test_v1_4_fits_and_draws_512_pixels(sources):
    check_parts(sources)
    assert sources.defaults() == {"width": 512, "height": 512}


def test_the_scheduler_of_parts_that_come_without_one_is_v1_4s(sources):
    assert {**sources.scheduler(), "_diffusers_version": None} == {
        **V1_4_SCHEDULER,
        "_diffusers_version": None,
    }


def test_an_image_of_512_pixels_is_48_times_fewer_latents_and_comes_back():
    with torch.device("meta"):
        network = vae().eval()
        image = torch.empty(1, 3, 512, 512)
    with torch.no_grad():
        z = network.encode(image).latent_dist.mode()
        assert z.shape == (1, 4, 64, 64)
        assert image.numel() == 48 * z.numel()
        assert decode(network, z).shape == image.shape
    assert vae_factor(network) == 8
