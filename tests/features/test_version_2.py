"""Stable Diffusion 2: single files with OpenCLIP's names, and folders, held against diffusers."""

import json
import re

import pytest
import torch
from diffusers import LMSDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from safetensors.torch import load_file, save_file
from support.checkpoints import ldm_unet, ldm_vae
from support.errors import raises
from support.hub_server import Hub
from support.parity import BETAS, diffusers_run
from support.tiny import LENGTH, WIDTH, tiny_model, tiny_unet
from transformers import CLIPTextConfig, CLIPTextModel

from sdpipe import Pipeline, UsageError
from sdpipe.cli.app import main
from sdpipe.components import inspect_model, load
from sdpipe.errors import ModelError
from sdpipe.loading.locate import DEFAULT

pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")  # the weights are random

OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


@pytest.fixture(scope="module")
def version_1(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("version 1"))


@pytest.fixture(scope="module")
def version_2(tmp_path_factory):
    """A tiny model with everything in which version 2 differs, as diffusers publishes it."""
    folder = tiny_model(tmp_path_factory.mktemp("version 2"))
    tokenizer = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    edit(folder / "tokenizer/tokenizer_config.json", **{**tokenizer, "pad_token": "!"})
    edit(folder / "tokenizer/special_tokens_map.json", pad_token="!")
    edit(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    vocabulary = json.loads((folder / "text_encoder/config.json").read_text())["vocab_size"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=WIDTH,
                intermediate_size=3 * WIDTH,
                num_hidden_layers=23,
                num_attention_heads=1,
                max_position_embeddings=LENGTH,
                hidden_act="gelu",
                projection_dim=512,
            )
        )
        unet = tiny_unet(use_linear_projection=True, attention_head_dim=(1, 1), sample_size=6)
    text.save_pretrained(folder / "text_encoder")
    unet.save_pretrained(folder / "unet")
    return folder


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def openclip(tensors, blocks):
    """The text encoder as version 2's own files have it: q, k and v in one, and a last layer."""
    found = {
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "ln_final.weight": tensors["final_layer_norm.weight"],
        "ln_final.bias": tensors["final_layer_norm.bias"],
    }
    for i in range(blocks):
        layer = f"encoder.layers.{min(i, 22)}."  # what the 24th holds must not matter
        start = f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            parts = [tensors[f"{layer}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            found[f"{start}attn.in_proj_{kind}"] = torch.cat(parts) + (i > 22)
            for ours, theirs in OPENCLIP.items():
                found[f"{start}{theirs}.{kind}"] = tensors[f"{layer}{ours}.{kind}"] + (i > 22)
    if blocks == 24:
        found["text_projection"] = torch.ones(WIDTH, WIDTH)
        found["logit_scale"] = torch.tensor(4.6)
    return {f"cond_stage_model.model.{name}": tensor for name, tensor in found.items()}


def write(folder, path, blocks=24, extra=(), **metadata):
    unet = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder/model.safetensors")
    text = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    tensors = {f"model.diffusion_model.{ldm_unet(k)}": v for k, v in unet.items()}
    for key, tensor in vae.items():
        name, value = ldm_vae(key, tensor)
        tensors[f"first_stage_model.{name}"] = value.contiguous()
    tensors |= openclip(text, blocks) | {name: torch.zeros(1) for name in extra}
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.fixture
def hub(monkeypatch, tmp_path, version_1):
    with Hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        hub.add(DEFAULT, version_1)
        yield hub


@pytest.mark.parametrize("blocks", [24, 23])
def test_a_file_is_the_same_model_as_its_folder(hub, version_2, tmp_path, blocks):
    path = write(version_2, tmp_path / "v2.safetensors", blocks)
    found = load(path, dtype="float32", prediction_type="v")
    like = load(version_2, dtype="float32")
    for part in ("text_encoder", "unet", "vae"):
        ours, theirs = getattr(found, part).state_dict(), getattr(like, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert found.scheduler_config == like.scheduler_config
    assert found.tokenizer.pad_token_id == like.tokenizer.pad_token_id == 0
    assert found.defaults == like.defaults == {"width": 48, "height": 48}
    assert found.model.identity()["prediction"] == "v"
    assert load(path, prediction_type="epsilon").defaults == {"width": 32, "height": 32}


def test_diffusers_reads_the_same_of_a_file(hub, version_2, tmp_path):
    path = write(version_2, tmp_path / "v2.safetensors")
    found = load(path, dtype="float32", prediction_type="v")
    unet = UNet2DConditionModel.from_single_file(
        str(path), config=str(version_2), subfolder="unet", local_files_only=True
    )
    text = create_diffusers_clip_model_from_ldm(
        CLIPTextModel, load_file(path), "text_encoder", str(version_2), local_files_only=True
    )
    for ours, theirs in ((found.unet, unet), (found.text_encoder, text)):
        known = ours.state_dict()
        assert all(torch.equal(known[k], v) for k, v in theirs.state_dict().items())


def test_images_are_those_of_diffusers(hub, version_2, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(
        version_2, local_files_only=True, safety_checker=None
    )
    scheduler = LMSDiscreteScheduler(**BETAS, steps_offset=1, prediction_type="v_prediction")
    run = {"seed": 7, "g": 3.0, "steps": 3}
    theirs, images = diffusers_run(pipe, scheduler, ["a red cat"], **run, width=48, height=48)
    path = write(version_2, tmp_path / "v2.safetensors")
    for model, more in ((version_2, {}), (path, {"prediction_type": "v"})):
        ours = Pipeline(model, device="cpu", dtype="float32", **more).generate(
            "a red cat", **run, save_int=True
        )
        assert len(ours.steps) == len(theirs) == 3
        for step, latents in zip(ours.steps, theirs, strict=True):
            assert (step.latents - latents).abs().max() < 1e-4 * latents.abs().max()
        assert ours.images[0].tobytes() == images[0].tobytes()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"modelspec.prediction_type": "v"}, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ({"extra": ("v_pred",)}, "v_prediction"),
    ],
)
def test_a_file_may_tell_what_it_predicts(hub, version_2, tmp_path, more, expected):
    path = write(version_2, tmp_path / "v2.safetensors", **more)
    assert load(path).scheduler_config["prediction_type"] == expected


def test_a_file_that_does_not_say_what_it_predicts_is_refused(hub, version_2, tmp_path):
    path = write(version_2, tmp_path / "v2.safetensors")
    with raises(ModelError, "v2.safetensors", "does not say what its UNet predicts"):
        inspect_model(path)
    with raises(UsageError, "prediction_type='x0'", "is unknown", "epsilon or v"):
        load(path, prediction_type="x0")


def test_what_was_said_is_in_the_image(hub, version_2, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write(version_2, tmp_path / "v2.safetensors")

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, " ".join(err.split())

    fast = ["--model", path, "--steps", "2", "--seed", "1", "--device", "cpu", "--dtype", "float32"]
    status, out, err = run("generate", "a cat", *fast, "--prediction-type", "v")
    assert status == 0, err
    image = out.strip()
    assert re.search(
        r"model +v2\.safetensors, sha256 \w{12}, prediction v\n", run("info", image)[1]
    )
    assert run("replay", image, "--model", path, "--verify")[:2] == (0, "identical\n")
