"""What Fooocus, SwarmUI, NovelAI, mflux, Easy Diffusion, Draw Things and dgenerate write."""

import json

import pytest
from PIL import Image
from support.errors import raises
from support.metadata import foreign_image, sample_image

from sdpipe.errors import SdpipeError
from sdpipe.io.mark import PNG_XMP
from sdpipe.io.texts import EXIF_IFD, USER_COMMENT
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
GRAPH = {"3": {"class_type": "KSampler", "inputs": {"seed": 28}}}


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


DRAW_THINGS = {
    "c": "a red cube",
    "uc": "blue",
    "model": "sd_v1.5_f16.ckpt",
    "sampler": "Euler A",
    "scale": 4.5,
    "seed": 2441935286,
    "seed_mode": "Torch CPU Compatible",
    "size": "64x32",
    "steps": 8,
    "strength": 1,
    "v2": {"loras": [{"file": "detail.ckpt", "weight": 0.8}], "clipSkip": 1},
}
XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 6.0.0">
   <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
      <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
            xmlns:exif="http://ns.adobe.com/exif/1.0/">
         <xmp:CreatorTool>Draw Things</xmp:CreatorTool>
         <exif:UserComment>
            <rdf:Alt>
               <rdf:li xml:lang="x-default">{comment}</rdf:li>
            </rdf:Alt>
         </exif:UserComment>
      </rdf:Description>
   </rdf:RDF>
</x:xmpmeta>
"""


def draw_things_image(path, comment):
    return foreign_image(path, **{PNG_XMP: XMP.replace("{comment}", comment)})


def test_draw_things(tmp_path):
    path = draw_things_image(tmp_path / "x.png", json.dumps({**DRAW_THINGS, "c": "a &lt;b> cube"}))
    record = read_record(path)
    assert record.settings() == Settings(
        prompt="a <b> cube",
        negative_prompt="blue",
        seed=2441935286,
        steps=8,
        g=4.5,
        width=64,
        height=32,
        scheduler="euler_a",
        rng="cpu",
    )
    assert (record.source, record.model) == ("Draw Things", {"name": "sd_v1.5_f16.ckpt"})
    assert record.notes == ("left out: loras.",)
    other = {**DRAW_THINGS, "seed_mode": "Scale Alike", "strength": 0.6, "v2": {}}
    record = read_record(draw_things_image(tmp_path / "y.png", json.dumps(other)))
    assert record.notes[0] == "the noise that Draw Things makes from a seed is not known here."
    assert record.notes[1] == "left out: strength."


@pytest.mark.parametrize(
    ("comment", "rule"),
    [("no JSON", "not valid JSON"), ("<p>", "cannot be read"), ("", "not valid JSON")],
)
def test_xmp_that_cannot_be_read(tmp_path, comment, rule):
    path = draw_things_image(tmp_path / "x.png", comment)
    with raises(SdpipeError, value=path, rule=rule):
        read_record(path)


def test_xmp_that_defines_its_own_texts_is_refused(tmp_path):
    """A thousand million laughs in two kilobytes."""
    bomb = '<!DOCTYPE x [<!ENTITY a "ha">]>' + XMP.replace("{comment}", "&a;")
    path = foreign_image(tmp_path / "x.png", **{PNG_XMP: bomb})
    with raises(SdpipeError, value=path, rule="declares a document type"):
        read_record(path)


DGENERATE = """#! /usr/bin/env dgenerate --file
#! dgenerate 5.0.0

CompVis/stable-diffusion-v1-4 \\
--model-type sd
--inference-steps 30
--guidance-scales 7.5
--clip-skips 1
--output-size 512x768
--seeds 86618021
--scheduler "DPMSolverMultistepScheduler;use-karras-sigmas=True"
--prompts "a (red) apple; dark"
--vae-tiling
"""


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_dgenerate(tmp_path, suffix):
    path = str(tmp_path / f"x.{suffix}")
    if suffix == "png":
        foreign_image(path, DgenerateConfig=DGENERATE)
    else:
        exif = Image.Exif()
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"ASCII\0\0\0" + DGENERATE.encode()
        sample_image().save(path, exif=exif)
    record = read_record(path)
    assert record.settings() == Settings(
        prompt="a \\(red\\) apple",
        negative_prompt="dark",
        seed=86618021,
        steps=30,
        g=7.5,
        clip_skip=2,
        width=512,
        height=768,
        scheduler="dpm++",
        karras=True,
        rng="cuda",
    )
    assert (record.source, record.versions) == ("dgenerate", {"program": "dgenerate 5.0.0"})
    assert record.model == {"name": "CompVis/stable-diffusion-v1-4"}
    assert record.notes[-1] == "left out: model_type, vae_tiling."


def test_a_command_of_dgenerate_that_makes_no_sense(tmp_path):
    path = foreign_image(tmp_path / "x.png", DgenerateConfig='model --prompts "a')
    with raises(SdpipeError, value=path, rule="No closing quotation"):
        read_record(path)
    path = foreign_image(tmp_path / "y.png", DgenerateConfig="x" * 40_000)
    with raises(SdpipeError, value=path, rule="exceeds the 32768 read"):
        read_record(path)


def test_json_of_an_unknown_program(tmp_path):
    path = foreign_image(tmp_path / "x.png", parameters={"artist": "me", "tags": ["a", "b"]})
    assert read_record(path).extra == {"artist": "me", "tags": "2 entries"}
    with raises(SdpipeError, value=path, rule="drawn by another program"):
        prepare(path)
