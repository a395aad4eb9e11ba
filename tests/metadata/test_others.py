"""What Fooocus, SwarmUI, NovelAI, mflux, Easy Diffusion and ComfyUI write."""

import json

import pytest
from PIL import Image
from support.errors import raises
from support.metadata import foreign_image, sample_image

from sdpipe.errors import SdpipeError
from sdpipe.io.texts import EXIF_IFD, USER_COMMENT
from sdpipe.metadata.info import info
from sdpipe.metadata.read import read_record
from sdpipe.metadata.replay import prepare
from sdpipe.settings import Settings

# Cut from images that the programs drew.
FOOOCUS = {
    "base_model": "juggernautXL_v8Rundiffusion",
    "base_model_hash": "aeb7e9e689",
    "clip_skip": 2,
    "full_prompt": ["cinematic still a smiling goldfish", "a smiling goldfish, deep focus"],
    "guidance_scale": 4,
    "loras": [],
    "metadata_scheme": "fooocus",
    "negative_prompt": "(bad art:1.4), Steps: 3",
    "prompt": "a smiling goldfish",
    "resolution": "(768, 1280)",
    "sampler": "euler_ancestral",
    "scheduler": "karras",
    "seed": "6952411511246973023",
    "sharpness": 2,
    "steps": 30,
    "version": "Fooocus v2.4.3",
}
SWARM = {
    "sui_image_params": {
        "prompt": "a Close-Up photograph",
        "negativeprompt": "",
        "model": "Flux/flux1-dev-fp8",
        "seed": 305223794,
        "steps": 25,
        "cfgscale": 1.0,
        "width": 512,
        "height": 768,
        "sampler": "euler",
        "scheduler": "normal",
        "vae": "ae.sft",
        "swarm_version": "0.9.1.1",
    }
}
NOVELAI = {
    "Title": "AI generated image",
    "Description": "masterpiece, {cat}, [icon]",
    "Software": "NovelAI",
    "Source": "Stable Diffusion 1D44365E",
    "Comment": {
        "steps": 50,
        "sampler": "k_euler_ancestral",
        "seed": 2253955223,
        "strength": 0.4,
        "noise": 0.0,
        "scale": 10.0,
        "uc": "lowres",
    },
}
MFLUX = {
    "mflux_version": "0.4",
    "model": "black-forest-labs/FLUX.1-dev",
    "seed": 3,
    "steps": 14,
    "guidance": 3.5,
    "width": 1024,
    "height": 576,
    "prompt": "a tree",
    "quantize": 8,
}
EASY_DIFFUSION = {
    "prompt": "a photo of an astronaut",
    "negative_prompt": "sad",
    "seed": "1",
    "num_inference_steps": "25",
    "guidance_scale": "7.5",
    "width": "512",
    "height": "512",
    "sampler_name": "plms",
    "clip_skip": "False",
    "use_stable_diffusion_model": "sd-v1-4",
}
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 28, "cfg": 8.0, "model": ["4", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a glass bottle", "clip": ["4", 1]}},
    "9": {"class_type": "Odd*Node"},
}


def commented_jpeg(path, value):
    """A JPEG with JSON as its UserComment, after the code that EXIF asks for."""
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"ASCII\0\0\0" + json.dumps(value).encode()
    sample_image().save(path, exif=exif)
    return str(path)


def test_fooocus(tmp_path):
    record = read_record(foreign_image(tmp_path / "x.png", parameters=FOOOCUS))
    assert record.settings() == Settings(
        prompt="a smiling goldfish",
        negative_prompt="(bad art:1.4), Steps: 3",
        seed=6952411511246973023,
        steps=30,
        g=4,
        width=768,
        height=1280,
        clip_skip=2,
        scheduler="euler_a",
    )
    assert record.source == "Fooocus"
    assert record.model == {"name": "juggernautXL_v8Rundiffusion", "hash": "aeb7e9e689"}
    assert record.notes == (
        "its Karras noise levels are left out; this scheduler has none.",
        "the noise that Fooocus makes from a seed is not known here.",
        "left out: full_prompt, sharpness.",
    )


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_swarmui(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    if suffix == "png":
        foreign_image(path, parameters=json.dumps(SWARM, indent=2), prompt=GRAPH)
    else:
        commented_jpeg(path, SWARM)
    record = read_record(path)
    assert record.settings() == Settings(
        prompt="a Close-Up photograph",
        seed=305223794,
        steps=25,
        g=1,
        width=512,
        height=768,
        scheduler="euler",
    )
    assert (record.source, record.versions) == ("SwarmUI", {"program": "0.9.1.1"})
    assert record.notes[-1] == "left out: vae."


def test_novelai(tmp_path):
    record = read_record(foreign_image(tmp_path / "x.png", **NOVELAI))
    assert record.source == "NovelAI"
    assert record.settings() == Settings(
        prompt="masterpiece, {cat}, \\[icon\\]",
        negative_prompt="lowres",
        seed=2253955223,
        steps=50,
        g=10,
        scheduler="euler_a",
    )
    assert record.model == {"name": "Stable Diffusion 1D44365E"}
    assert record.notes[-1] == "left out: strength."


def test_mflux(tmp_path):
    record = read_record(commented_jpeg(tmp_path / "x.jpg", MFLUX))
    assert record.settings() == Settings(
        prompt="a tree", seed=3, steps=14, g=3.5, width=1024, height=576
    )
    assert (record.source, record.extra) == ("mflux", {"quantize": 8})


def test_easy_diffusion(tmp_path):
    record = read_record(foreign_image(tmp_path / "x.png", **EASY_DIFFUSION))
    assert record.source == "Easy Diffusion"
    assert record.settings() == Settings(
        prompt="a photo of an astronaut",
        negative_prompt="sad",
        seed=1,
        steps=25,
        g=7.5,
        width=512,
        height=512,
        scheduler="pndm",
    )


def test_a_graph_of_comfyui_is_shown_and_not_drawn(tmp_path):
    path = foreign_image(tmp_path / "x.png", prompt=GRAPH, workflow={"nodes": []})
    assert str(info(path)).splitlines()[1:-2] == [
        "  written by               ComfyUI",
        "  KSampler seed (3)        28",
        "  KSampler cfg (3)         8",
        "  CLIPTextEncode text (6)  a glass bottle",
    ]
    with raises(SdpipeError, value=path, rule="drawn by ComfyUI", remedy="sdpipe info"):
        prepare(path)


def test_the_editor_of_comfyui_alone(tmp_path):
    nodes = [{"id": 7, "type": "CLIPTextEncode", "widgets_values": ["text"]}, {"id": 8}, 3]
    record = read_record(foreign_image(tmp_path / "x.png", workflow={"nodes": nodes}))
    assert (record.source, record.extra) == ("ComfyUI", {"CLIPTextEncode 0 (7)": "text"})


def test_a_large_graph_is_shown_in_part(tmp_path):
    nodes = {str(k): {"class_type": "N", "inputs": {"é*": k}} for k in range(300)}
    record = read_record(foreign_image(tmp_path / "x.png", prompt=nodes))
    assert len(record.extra) == 200
    assert record.extra["N é_ (0)"] == 0


def test_json_of_an_unknown_program(tmp_path):
    path = foreign_image(tmp_path / "x.png", parameters={"artist": "me", "tags": ["a", "b"]})
    assert read_record(path).extra == {"artist": "me", "tags": "2 entries"}
    with raises(SdpipeError, value=path, rule="drawn by another program"):
        prepare(path)
