"""Refusals of what a model that is here does not take: without torch, and so at once."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import sdpipe
from sdpipe.loading.locate import BUILT_IN_FOLDER

RUN = """
import contextlib, io, json, sys
from sdpipe.cli import main
told = []
for words in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(words)
    told.append([status, said.getvalue(), "torch" in sys.modules])
print(json.dumps(told))
"""
K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
EMOJI = ["--model", "emoji"]
PICTURE = [*EMOJI, "--init-image", "init.png"]
CASES = {
    "a strength that is too small for the model's own steps": (
        ["generate", "x", *PICTURE, "--strength", "0.01"],
        (2, "strength=0.01 leaves no step of 30 to take"),
    ),
    "one of a second pass": (
        ["generate", "x", *EMOJI, "--hires-scale", "2", "--hires-strength", "0.01"],
        (2, "hires_strength=0.01 leaves no step"),
    ),
    "one of a sweep": (
        ["sweep", "x", *PICTURE, "--strength", "0.01,0.5"],
        (2, "strength=0.01 leaves no step"),
    ),
    "a layer that the text encoder does not have": (
        ["generate", "x", *EMOJI, "--clip-skip", "99"],
        (2, "clip_skip=99 is more than the"),
    ),
    "a picture that grows too wide": (
        ["generate", "x", *PICTURE, "--outpaint", "80000,0,0,0"],
        (2, "is out of range"),
    ),
    "a safety checker that the model lacks": (
        ["generate", "x", *EMOJI, "--safety", "flag"],
        (1, "model='emoji' has no safety checker"),
    ),
    "a LoRA of another architecture": (
        ["generate", "x", *EMOJI, "--lora", "lora.safetensors"],
        (1, f"has no layer for its {K}"),
    ),
    "the same in a sweep": (
        ["sweep", "x", *EMOJI, "--lora", "lora.safetensors", "--g", "1,2"],
        (1, f"has no layer for its {K}"),
    ),
    "vectors of another width": (
        ["generate", "x", *EMOJI, "--embedding", "word.safetensors"],
        (1, "has vectors of width 7"),
    ),
    "a file without a VAE": (
        ["generate", "x", *EMOJI, "--vae", "word.safetensors"],
        (1, "has no VAE"),
    ),
    "a U-Net of 9 channels": (
        ["generate", "x", "--model", "nine"],
        (1, "with in_channels=9 is an inpainting model"),
    ),
    "one in a single file": (
        ["generate", "x", "--model", "nine.safetensors"],
        (1, "has a UNet with 9 input channels"),
    ),
    "a file that is none, of which nobody asks for v1-4's configurations": (
        ["generate", "x", "--model", "text.safetensors"],
        (1, "model='text.safetensors' is a text that begins with"),
    ),
    "a file that is no model": (
        ["generate", "x", "--model", "word.safetensors"],
        (1, "is not a Stable Diffusion 1 or 2 checkpoint"),
    ),
    "a LoRA given as a model": (
        ["generate", "x", "--model", "lora.safetensors"],
        (1, "is a LoRA, which changes a model"),
    ),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("early")
    Image.new("RGB", (128, 128), "red").save(folder / "init.png")
    (folder / "text.safetensors").write_text("no tensors at all")
    save_file({"emb_params": np.zeros((2, 7), np.float32)}, folder / "word.safetensors")
    pair = {f"{K}.lora_down.weight": (4, 768), f"{K}.lora_up.weight": (320, 4)}
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in pair.items()},
        folder / "lora.safetensors",
    )
    nine = {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 9, 3, 3),
        "first_stage_model.decoder.conv_in.weight": (4, 4, 3, 3),
        "cond_stage_model.transformer.x": (1,),
    }
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in nine.items()},
        folder / "nine.safetensors",
    )
    shutil.copytree(BUILT_IN_FOLDER / "emoji", folder / "nine")
    config = folder / "nine" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([words for words, _ in CASES.values()]),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(sdpipe.__file__))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_before_torch_is_imported(told, case):
    (status, text), (found, said, torch) = CASES[case][1], told[case]
    assert text in said
    assert found == status
    assert not torch
