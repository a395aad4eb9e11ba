"""A VAE in place of the model's own: folders, and single files in both layouts."""

import re

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from support.checkpoints import ldm_vae
from support.errors import raises
from support.hub_server import Hub
from support.tiny import tiny_model, tiny_vae

from sdpipe.cli.app import main
from sdpipe.components import inspect_model, load
from sdpipe.errors import ModelError
from sdpipe.loading.locate import DEFAULT

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model, and another one whose VAE takes the place of its own."""
    folder = tmp_path_factory.mktemp("models")
    return tiny_model(folder / "one"), tiny_model(folder / "two", seed=1)


def diffusers_layout(tensors):
    return dict(tensors)


def old_diffusers_layout(tensors):
    found = {}
    for name, tensor in tensors.items():
        for new, old in OLD_NAMES.items():
            name = name.replace(f".{new}.", f".{old}.")
        found[name] = tensor
    return found


def ldm_layout(tensors):
    pairs = (ldm_vae(name, tensor) for name, tensor in tensors.items())
    return {name: tensor.contiguous() for name, tensor in pairs}


def ldm_checkpoint(tensors):
    found = {f"first_stage_model.{k}": v for k, v in ldm_layout(tensors).items()}
    return found | {"model.diffusion_model.out.2.bias": torch.zeros(4)}


@pytest.fixture
def file(models, tmp_path):
    def write(layout=ldm_layout):
        path = tmp_path / "mse.safetensors"
        save_file(layout(load_file(models[1] / WEIGHTS)), path)
        return path

    return write


@pytest.mark.parametrize(
    "layout", [diffusers_layout, old_diffusers_layout, ldm_layout, ldm_checkpoint]
)
def test_a_file_is_the_same_vae_as_its_folder(models, file, layout):
    path, (one, two) = file(layout), models
    found = load(one, dtype="float32", vae=path).vae.state_dict()
    expected = load_file(two / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    if layout is ldm_layout:
        theirs = AutoencoderKL.from_single_file(
            str(path), config=str(one), subfolder="vae", local_files_only=True
        ).state_dict()
        assert all(torch.equal(found[name], theirs[name]) for name in found)


def test_a_model_without_a_vae_takes_v1_4s_configuration(models, file, monkeypatch, tmp_path):
    bare = tiny_model(tmp_path / "bare")
    for path in (bare / "vae").iterdir():
        path.unlink()
    (bare / "vae").rmdir()
    with Hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        hub.add(DEFAULT, models[0])
        found = load(bare, dtype="float32", vae=file()).vae.state_dict()
    expected = load_file(models[1] / WEIGHTS)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"latent_channels": 16}, "has 16 latent channels, one latent for 8 x 8 pixels and 16"),
        (
            {
                "block_out_channels": (8, 16, 16),
                "down_block_types": ("DownEncoderBlock2D",) * 3,
                "up_block_types": ("UpDecoderBlock2D",) * 3,
            },
            "one latent for 4 x 4 pixels and 16 inner channels",
        ),
        ({"block_out_channels": (8, 8, 16, 32)}, "8 x 8 pixels and 32 inner channels;"),
    ],
)
def test_a_vae_of_another_kind_is_refused_before_anything_is_loaded(
    models, tmp_path, changes, rule
):
    other = tiny_vae(**changes)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with raises(ModelError, "other.safetensors", rule):
        inspect_model(models[0], vae=tmp_path / "other.safetensors")


def test_of_a_folder_with_old_names_the_tensor_that_does_not_fit_is_named(models, tmp_path):
    tiny_vae().save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"] = torch.zeros(4)
    save_file(old_diffusers_layout(tensors), path)
    with raises(ModelError, "the vae", "its tensor decoder.conv_out.bias has the shape [4]"):
        load(models[0], vae=tmp_path / "vae")


def test_a_folder_with_another_factor(models, tmp_path):
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    small = tiny_vae(block_out_channels=(8, 16, 16), **{k: v * 3 for k, v in kinds.items()})
    small.save_pretrained(tmp_path / "vae")
    with raises(ModelError, "one latent for 4 x 4 pixels", "has one for 8 x 8"):
        inspect_model(models[0], vae=tmp_path / "vae")


def test_what_is_no_vae(models, tmp_path):
    save_file({"lora_unet_x.alpha": torch.ones(1)}, path := tmp_path / "x.safetensors")
    with raises(ModelError, "x.safetensors", "has no VAE"):
        load(models[0], vae=path)
    with raises(ModelError, "unet=", "is a file"):
        load(models[0], unet=path)
    (tmp_path / "x.ckpt").touch()
    with raises(ModelError, "x.ckpt", "is a pickle"):
        load(models[0], vae=tmp_path / "x.ckpt")


def test_an_image_tells_its_vae_and_wants_it_back(models, file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path, (one, two) = file(), models

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, " ".join(err.split())

    fast = ["--model", one, "--steps", "2", "--seed", "1", "--device", "cpu", "--dtype", "float32"]
    status, out, err = run("generate", "a cat", *fast, "--vae", path)
    assert status == 0, err
    image = out.strip()
    out = run("info", image)[1]
    assert re.search(
        r"vae +mse\.safetensors, sha256 [0-9a-f]{12}, in place of the model's own", out
    )
    assert str(tmp_path) not in out.replace(str(one), "")

    again = ["replay", image, "--model", one, "--verify"]
    status, _, err = run(*again)
    assert (status, "with the VAE 'mse.safetensors', a path on another machine" in err) == (1, True)
    assert run(*again, "--vae", path)[:2] == (0, "identical\n")
    status, out, err = run(*again, "--vae", two)  # the same weights, in another file
    assert (status, out) == (0, "identical\n")
    assert "its VAE is another: 'mse.safetensors' @sha256:" in err
    status, _, err = run("generate", "a cat", *fast, "--vae", "nowhere/mse.safetensors")
    assert (status, "vae='nowhere/mse.safetensors' does not exist" in err) == (2, True)
