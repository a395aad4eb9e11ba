"""ComfyUI's graph, followed from the image that is saved to what drew it."""

import contextlib
import itertools
import json

import pytest
from sd_parsers import ParserManager
from support.errors import raises
from support.metadata import foreign_image

from sdpipe.errors import SdpipeError
from sdpipe.metadata import comfyui
from sdpipe.metadata.info import info
from sdpipe.metadata.read import read_record
from sdpipe.metadata.replay import prepare
from sdpipe.settings import Settings


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def link(key, output=0):
    return [str(key), output]


def graph(**changes):
    """The graph that ComfyUI opens with, and changes to it by the numbers of nodes."""
    sampler = {
        "seed": 156680208700286,
        "steps": 20,
        "cfg": 8,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1,
        "model": link(4),
        "positive": link(6),
        "negative": link(7),
        "latent_image": link(5),
    }
    nodes = {
        "3": node("KSampler", **sampler),
        "4": node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=640, batch_size=1),
        "6": node("CLIPTextEncode", text="beautiful scenery, [purple] bottle", clip=link(4, 1)),
        "7": node("CLIPTextEncode", text="text, watermark", clip=link(4, 1)),
        "8": node("VAEDecode", samples=link(3), vae=link(4, 2)),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=link(8)),
    }
    for key, inputs in changes.items():
        key = key.removeprefix("_")
        new = inputs if "class_type" in inputs else {**nodes[key]["inputs"], **inputs}
        nodes[key] = new if "class_type" in inputs else {**nodes[key], "inputs": new}
    return nodes


EXPECTED = {
    "prompt": "beautiful scenery, \\[purple\\] bottle",
    "negative_prompt": "text, watermark",
    "seed": 156680208700286,
    "steps": 20,
    "g": 8,
    "width": 512,
    "height": 640,
    "scheduler": "euler",
    "rng": "cpu",
}


def test_the_graph_that_it_opens_with(tmp_path):
    path = foreign_image(tmp_path / "x.png", prompt=graph(), workflow={"nodes": []})
    record = read_record(path)
    assert record.settings() == Settings(**EXPECTED)
    assert (record.source, record.model) == ("ComfyUI", {"name": "v1-5-pruned-emaonly.safetensors"})
    assert (record.extra, record.notes) == ({}, ())
    assert prepare(path).settings == Settings(**EXPECTED)
    shown = str(info(path))
    assert "  written by       ComfyUI\n" in shown
    assert "(3)" not in shown


def test_another_library_reads_the_same(tmp_path):
    """sd-parsers takes the links from the editor's graph."""
    nodes = graph()
    pairs = [
        (key, name, value[0])
        for key, held in nodes.items()
        for name, value in held["inputs"].items()
        if isinstance(value, list)
    ]
    kinds = {"clip": "CLIP", "model": "MODEL"}
    links = [[k, source, 0, key, 0, kinds.get(n, "X")] for k, (key, n, source) in enumerate(pairs)]
    path = foreign_image(tmp_path / "x.png", prompt=nodes, workflow={"links": links})
    found = ParserManager().parse(path)
    (sampler,) = found.samplers
    record = read_record(path)
    assert sampler.name == record.values["scheduler"]
    assert sampler.model.name == record.model["name"]
    assert sampler.parameters["seed"] == record.values["seed"]
    assert sampler.parameters["cfg_scale"] == record.values["g"]
    assert found.full_prompt == record.values["prompt"].replace("\\", "")
    assert found.full_negative_prompt == record.values["negative_prompt"]


LORA = node(
    "LoraLoader", lora_name="detail.safetensors", strength_model=0.8, model=link(4), clip=link(4, 1)
)


@pytest.mark.parametrize(
    ("changes", "values", "said"),
    [
        ({"_3": {"sampler_name": "lms", "scheduler": "karras"}},
         {"scheduler": "lms", "karras": True, "lms_order": 4}, ()),
        ({"_3": {"sampler_name": "uni_pc", "scheduler": "beta"}},
         {"scheduler": "unipc"}, ("'beta'",)),
        ({"_3": {"sampler_name": "euler_ancestral"}}, {"scheduler": "euler_a"}, ("later steps",)),
        (
            {"_3": {"sampler_name": "dpmpp_2m_sde_gpu"}},
            {"scheduler": "dpm++_2m_sde"},
            ("Brownian tree",),
        ),
        (
            {"_3": {"sampler_name": "dpm_2_ancestral"}},
            {"scheduler": "dpm2_a"},
            ("later steps", "last noise level but one"),
        ),
        ({"_3": {"sampler_name": "dpmpp_2m"}}, {"scheduler": "dpm++"}, ("end at timestep 0",)),
        (
            {"_6": {"clip": link(10)}, "_7": {"clip": link(10)},
             "_10": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=link(4, 1))},
            {"clip_skip": 2},
            (),
        ),
        (
            {"_3": {"model": link(10)}, "_6": {"clip": link(10, 1)}, "_10": LORA},
            {},
            ("left out: LoraLoader detail.safetensors (10).",),
        ),
        ({"_5": {"batch_size": 4}}, {}, ("batch of 4",)),
        ({"_3": {"denoise": 0.6}}, {}, ("a part of the steps",)),
        ({"_3": {"seed": link(10)}, "_10": node("PrimitiveInt", value=7)}, {"seed": 7}, ()),
        ({"_6": {"text": link(10)}, "_10": node("Text", string="a (cat:1.2)")},
         {"prompt": "a (cat:1.2)"}, ("weights of words", "left out: Text (10).")),
        (  # one output for each prompt
            {"_3": {"positive": link(10), "negative": link(10, 1)},
             "_10": node("ControlNetApplyAdvanced", positive=link(6), negative=link(7),
                         image=link(11)),
             "_11": node("LoadImage", image="pose.png")},
            {},
            ("left out: ControlNetApplyAdvanced (10), LoadImage (11).",),
        ),
        ({"_3": {"negative": link(10)}, "_10": node("ConditioningZeroOut", conditioning=link(6))},
         {"negative_prompt": ""}, ("left out: ConditioningZeroOut (10).",)),
        ({"_3": {"positive": link(10)},
          "_10": node("ConditioningCombine", conditioning_1=link(6), conditioning_2=link(7))},
         {}, ("2 positive prompts", "left out: ConditioningCombine (10).")),
        (  # drawn from an image
            {"_5": node("VAEEncode", pixels=link(10), vae=link(4, 2)),
             "_10": node("LoadImage", image="a.png")},
            {"width": None, "height": None},
            ("from another image", "left out: VAEEncode (5), LoadImage (10)."),
        ),
        (  # a second pass
            {"_8": {"samples": link(11)},
             "_10": node("LatentUpscale", samples=link(3), width=1024, height=1280),
             "_11": node("KSampler", seed=9, steps=14, cfg=8, model=link(4), positive=link(6),
                         negative=link(7), latent_image=link(10))},
            {},
            ("left out: KSampler (11), LatentUpscale (10).",),
        ),
        ({"_9": node("Image Save", images=link(8))}, {}, ()),  # of an extension
    ],
)  # fmt: skip
def test_changes_to_it(changes, values, said):
    record = comfyui.read(graph(**changes))
    assert record.settings() == Settings(**{**EXPECTED, **values})
    assert len(record.notes) == len(said)
    for part in said:
        assert any(part in note for note in record.notes), record.notes


def test_an_advanced_sampler():
    nodes = graph(_3={"noise_seed": 5, "start_at_step": 0, "end_at_step": 10000})
    nodes["3"]["class_type"] = "KSamplerAdvanced"
    for name in ("seed", "denoise"):
        del nodes["3"]["inputs"][name]
    assert comfyui.read(nodes).settings() == Settings(**{**EXPECTED, "seed": 5})


def test_a_graph_without_its_sampler_is_shown_and_not_drawn(tmp_path):
    nodes = {
        "1": node("SamplerCustomAdvanced", noise=link(2)),
        "2": node("RandomNoise", noise_seed=3),
    }
    path = foreign_image(tmp_path / "x.png", prompt=nodes)
    assert read_record(path).extra == {"RandomNoise noise_seed (2)": 3}
    with raises(SdpipeError, value=path, rule="drawn by ComfyUI", remedy="sdpipe info"):
        prepare(path)


def test_the_editor_alone(tmp_path):
    nodes = [{"id": 7, "type": "CLIPTextEncode", "widgets_values": ["text"]}, {"id": 8}, 3]
    record = read_record(foreign_image(tmp_path / "x.png", workflow={"nodes": nodes}))
    assert (record.source, record.extra) == ("ComfyUI", {"CLIPTextEncode 0 (7)": "text"})


def test_a_large_graph_is_shown_in_part():
    record = comfyui.read({str(k): node("N", **{"é*": k}) for k in range(300)})
    assert len(record.extra) == 200
    assert record.extra["N é_ (0)"] == 0


CIRCLE = graph(_5=node("LatentBlend", samples1=link(3), samples2=link(5)), _6={"text": link(6)})
CHAIN = {str(k): node("ConditioningX", conditioning=link(k + 1)) for k in range(10_000, 20_000)}
WIDE = node("Batch", **{f"image{k}": link(4) for k in range(20_000)})


@pytest.mark.parametrize(
    "nodes",
    [
        CIRCLE,
        graph(_3={"positive": link(10_000)}) | CHAIN,
        graph(_9={"images": link(10)}, _10=WIDE),
        {str(k): node("End", images=link(k + 1)) for k in range(15_000)},
        graph(_3={"positive": ["6"], "negative": [], "latent_image": [[5], 0], "model": {"a": 1}}),
    ],
)
def test_no_graph_takes_long(nodes):
    """A thousand million steps would; the number of nodes that are followed is bounded."""
    assert len(text := json.dumps(nodes)) < 2**20
    assert comfyui.read(json.loads(text)).source == "ComfyUI"


def test_any_value_in_any_place_is_a_record_or_refused():
    odd = (None, True, [], {}, "", -1, 1e300, "x" * 400, [None, 0], link(3), link("none"))
    places = [(key, name) for key, held in graph().items() for name in held["inputs"]]
    for (key, name), value in itertools.product(places, odd):
        try_to_read(graph(**{f"_{key}": {name: value}}))
    for key, name, value in itertools.product(graph(), ("inputs", "class_type"), odd):
        nodes = graph()
        try_to_read({**nodes, key: {**nodes[key], name: value}})


def try_to_read(nodes):
    with contextlib.suppress(SdpipeError):
        comfyui.read(nodes).settings()
