import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import ldm_unet, ldm_vae
from support.errors import raises
from support.hub_server import Hub
from support.tiny import tiny_model

from sdpipe.cli.app import main
from sdpipe.components import load
from sdpipe.errors import ModelError
from sdpipe.loading.locate import DEFAULT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tensors(folder):
    """The tiny model's tensors as LDM names them."""
    unet = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder/model.safetensors")
    found = {f"model.diffusion_model.{ldm_unet(k)}": v for k, v in unet.items()}
    for key, tensor in vae.items():
        name, value = ldm_vae(key, tensor)
        found[f"first_stage_model.{name}"] = value.contiguous()
    # v1-4's own file has the positions among its weights.
    found |= {f"cond_stage_model.transformer.{k}": v for k, v in text.items()}
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    return found | {positions: torch.arange(77)[None], "alphas_cumprod": torch.ones(1000)}


@pytest.fixture
def hub(monkeypatch, tmp_path, folder):
    with Hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        hub.add(DEFAULT, folder)
        yield hub


@pytest.fixture
def file(tensors, tmp_path):
    def write(*, tensors=tensors):
        path = tmp_path / "mine.safetensors"
        save_file(tensors, path)
        return path

    return write


def test_a_single_file_is_the_same_model_as_its_folder(hub, file, folder):
    found = load(file(), dtype="float32")
    like = load(folder, dtype="float32")
    for part in ("text_encoder", "unet", "vae"):
        ours, theirs = getattr(found, part).state_dict(), getattr(like, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert found.tokenizer("red apple").input_ids == like.tokenizer("red apple").input_ids
    assert found.scheduler_config == {**like.scheduler_config, "prediction_type": "epsilon"}
    assert found.model.identity()["sha256"] != like.model.identity()["sha256"]


def test_it_is_held_against_diffusers_as_its_folder_is(hub, file, folder, capsys):
    draw = ["compare", "red cat", "--seed", "3", "--steps", "3", "--device", "cpu", "--json"]
    told = []
    for model in (file(), folder):
        assert main([*draw, "--model", str(model)]) == 0
        told.append(json.loads(capsys.readouterr().out))
    alone, whole = told
    assert alone["passed"]
    assert alone["steps"] == whole["steps"]
    assert alone["settings"] == whole["settings"]
    assert alone["model"]["name"].endswith("mine.safetensors")


def test_only_configurations_are_fetched_and_only_once(hub, file):
    load(file(), dtype="float32")
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
    hub.requests.clear()
    half = load(file(), dtype="float16")
    assert hub.requests == []
    assert {p.dtype for p in half.unet.parameters()} == {torch.float16}
    assert {p.dtype for p in half.text_encoder.parameters()} == {torch.float16}


def test_the_moving_average_is_taken(hub, file, tensors):
    averages = {
        "model_ema." + "".join(k.split(".")[1:]): v + 1
        for k, v in tensors.items()
        if k.startswith("model.diffusion_model.")
    }
    both = load(file(tensors=tensors | averages), dtype="float32").unet
    alone = load(file(), dtype="float32").unet
    assert torch.equal(both.conv_in.weight, alone.conv_in.weight + 1)


def test_without_the_configurations(hub, file):
    hub.stop()
    with raises(ModelError, "mine.safetensors' needs v1-4's configurations"):
        load(file())


@pytest.mark.parametrize(
    ("start", "part"),
    [
        ("first_stage_model.", "vae"),
        ("cond_stage_model.", "text_encoder"),
        ("model.", "unet"),
    ],
)
def test_a_file_without_a_part(hub, file, tensors, start, part):
    rest = {k: v for k, v in tensors.items() if not k.startswith(start)}
    with raises(ModelError, "mine.safetensors", f"has no {part}", f"{part}="):
        load(file(tensors=rest))


def test_the_part_that_a_file_lacks_can_be_given(hub, file, tensors, folder):
    rest = {k: v for k, v in tensors.items() if not k.startswith("first_stage_model.")}
    found = load(file(tensors=rest), vae=folder)
    assert found.model.parts == {"vae": str(folder)}


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "model.diffusion_model.out.2.bias"),
        ("vae", "first_stage_model.decoder.conv_out.bias"),
        ("text_encoder", "cond_stage_model.transformer.text_model.final_layer_norm.bias"),
    ],
)
def test_a_file_that_lacks_one_tensor(hub, file, tensors, part, name):
    rest = {k: v for k, v in tensors.items() if k != name}
    with raises(ModelError, f"the {part}", "is incomplete"):
        load(file(tensors=rest))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("conditioner.embedders.0.transformer.weight", "is a Stable Diffusion XL model"),
        ("lora_unet_down_blocks_0.alpha", "is a LoRA"),
        ("down_blocks.0.resnets.0.conv1.weight", "is a UNet without the other parts"),
        ("decoder.conv_in.weight", "is a VAE without the other parts"),
        ("fc.weight", "is not a Stable Diffusion 1 or 2 checkpoint"),
        ("first_stage_model.decoder.conv_in.weight", "has no text_encoder"),
    ],
)
def test_files_of_other_kinds(hub, file, name, rule):
    with raises(ModelError, "mine.safetensors", rule):
        load(file(tensors={name: torch.zeros(1)}))


def test_an_inpainting_file(hub, file, tensors):
    key = "model.diffusion_model.input_blocks.0.0.weight"
    with raises(ModelError, "mine.safetensors", "9 input channels"):
        load(file(tensors=tensors | {key: torch.zeros(16, 9, 3, 3)}))


def test_a_damaged_file(hub, file):
    path = file()
    path.write_bytes(path.read_bytes()[:-10])
    with raises(ModelError, "mine.safetensors", "is damaged or cut short"):
        load(path)
