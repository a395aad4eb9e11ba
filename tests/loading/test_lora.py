"""LoRAs against diffusers' own loader, which leaves them beside the weights, and the formula."""

import copy
import functools
import json
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    LCMScheduler,
    LMSDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from support.errors import raises
from support.parity import BETAS, REFERENCE, assert_equal, diffusers_pipeline, diffusers_run
from support.tiny import tiny_model
from transformers import CLIPTextModel

from sdpipe import Pipeline, UsageError
from sdpipe.cli.app import main
from sdpipe.components import inspect_model, load
from sdpipe.errors import ModelError
from sdpipe.loading.locate import BUILT_IN_FOLDER
from sdpipe.loading.lora import Lora

pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")  # the weights are random

RANK = 4
UNET = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "conv_in")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TO_OUT = TO_Q.replace("to_q", "to_out.0")
Q_PROJ = "encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plain(tiny):
    """Its components without a LoRA."""
    return load(tiny, dtype="float32")


@functools.cache
def weights(folder, part):
    kind = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}[part]
    found = kind.from_pretrained(folder, subfolder=part).state_dict()
    return {k.removesuffix(".weight"): v for k, v in found.items() if k.endswith(".weight")}


def kohya(folder, path, seed=0):
    """As kohya's trainer and LyCORIS (conv) name and shape them, with an alpha for each layer."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for part, start, ends in (
        ("unet", "lora_unet_", UNET + CONVOLUTIONS),
        ("text_encoder", "lora_te_text_model_", TEXT),
    ):
        for name, weight in weights(folder, part).items():
            if not name.endswith(ends):
                continue
            key, kernel = start + name.replace(".", "_"), weight.shape[2:]
            down = torch.randn(RANK, weight.shape[1], *kernel, generator=random)
            up = torch.randn(weight.shape[0], RANK, *(1 for _ in kernel), generator=random)
            tensors[f"{key}.lora_down.weight"] = down / 8
            tensors[f"{key}.lora_up.weight"] = up / 8
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path, metadata={"ss_base_model_version": "sd_v1"})
    return path


def diffusers(folder, path, seed=0, **config):
    """As diffusers' training scripts write them: names, and notes on rank and alpha."""
    networks = {}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        for part, kind, ends in (
            ("unet", UNet2DConditionModel, ["to_q", "to_k", "to_v", "to_out.0", "conv1"]),
            ("text_encoder", CLIPTextModel, ["q_proj", "v_proj", "fc1"]),
        ):
            network = networks[part] = kind.from_pretrained(folder, subfolder=part)
            wanted = {"r": RANK, "lora_alpha": 2, "target_modules": ends, **config}
            network.add_adapter(LoraConfig(init_lora_weights=False, **wanted))
            for name, parameter in network.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(parameter, std=1 / 8)
        # Converted, the attention of a U-Net is called otherwise than its convolutions, and where
        # those come first in the file diffusers' loader leaves the attention out.
        layers = {
            "unet_lora_layers": get_peft_model_state_dict(networks["unet"]),
            "text_encoder_lora_layers": convert_state_dict_to_diffusers(
                get_peft_model_state_dict(networks["text_encoder"])
            ),
        }
        notes = _collate_lora_metadata(networks)
        StableDiffusionPipeline.save_lora_weights(
            path.parent, weight_name=path.name, **layers, **notes
        )
    return path


def drawn_by_diffusers(folder, loras, **run):
    """The latents and the image as diffusers draws them, with LoRAs beside the weights."""
    parts = load(folder, device="cpu", dtype="float32")
    emoji = folder == "emoji"
    scheduler = REFERENCE["lms"]() if emoji else LMSDiscreteScheduler(**BETAS, steps_offset=1)
    pipe = diffusers_pipeline(parts, scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, (path, _) in enumerate(loras):
            pipe.load_lora_weights(path, adapter_name=f"number{i}")
        pipe.set_adapters([f"number{i}" for i in range(len(loras))], [w for _, w in loras])
    side = parts.defaults["width"]
    return diffusers_run(parts, scheduler, ["a red cat"], **run, width=side, height=side)


@pytest.mark.parametrize("model", ["tiny", "emoji"])
def test_images_are_those_of_diffusers(tiny, tmp_path, model):
    folder, name = (tiny, tiny) if model == "tiny" else (BUILT_IN_FOLDER / "emoji", "emoji")
    patterns = {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_v": 6, "fc1": 1}}
    loras = [
        (kohya(folder, tmp_path / "kohya.safetensors"), 0.8),
        (diffusers(folder, tmp_path / "diffusers.safetensors", **patterns), -0.5),
    ]
    run = {"seed": 7, "g": 3.0, "steps": 3}
    plain = Pipeline(name, device="cpu", dtype="float32").generate("a red cat", **run)
    for some in (loras[:1], loras[1:], loras) if model == "tiny" else (loras,):
        theirs, their_images = drawn_by_diffusers(name, some, **run)
        pipe = Pipeline(name, device="cpu", dtype="float32", loras=some)
        ours = pipe.generate("a red cat", **run, scheduler="lms", lms_order=4, save_int=True)
        assert len(ours.steps) == len(theirs) == 3
        for step, latents in zip(ours.steps, theirs, strict=True):
            assert (step.latents - latents).abs().max() < 1e-4 * latents.abs().max()
        ours_8bit, theirs_8bit = (np.asarray(i[0], int) for i in (ours.images, their_images))
        assert np.abs(ours_8bit - theirs_8bit).max() <= 1
        assert np.abs(ours_8bit - np.asarray(plain.images[0], int)).max() > 10


LCM = (*UNET, *CONVOLUTIONS[:4], "upsamplers.0.conv", "time_emb_proj")


def test_lcm_lora_is_fused_as_diffusers_fuses_it(tiny, tmp_path):
    """In float16 and kohya's names, with the kinds of layers that LCM-LoRA and Hyper-SD have."""
    random = torch.Generator().manual_seed(3)
    tensors, kinds = {}, set()
    for name, weight in weights(tiny, "unet").items():
        if ends := [end for end in LCM if name.endswith(end)]:
            kinds.update(ends)
            key, kernel = "lora_unet_" + name.replace(".", "_"), weight.shape[2:]
            down = torch.randn(RANK, weight.shape[1], *kernel, generator=random) / 8
            up = torch.randn(weight.shape[0], RANK, *(1 for _ in kernel), generator=random) / 8
            matrices = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
            tensors |= {f"{key}.{role}": tensor.half() for role, tensor in matrices.items()}
    assert kinds == set(LCM)
    save_file(tensors, path := tmp_path / "pytorch_lora_weights.safetensors")

    run = {"seed": 7, "g": 1.0, "steps": 4, "width": 32, "height": 32}
    theirs = diffusers_pipeline(
        load(tiny, device="cpu", dtype="float32"), LCMScheduler(**BETAS, steps_offset=1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.load_lora_weights(path)
        theirs.fuse_lora(components=["unet"])
        theirs.unload_lora_weights()
    ours = Pipeline(tiny, device="cpu", dtype="float32", loras=[path])
    changed = ours.components.unet.state_dict()
    before = weights(tiny, "unet")
    for name, weight in theirs.unet.state_dict().items():
        assert torch.allclose(changed[name], weight, atol=1e-5), name
    assert (
        sum(not torch.equal(changed[f"{n}.weight"], w) for n, w in before.items())
        == len(tensors) // 3
    )
    result = ours.generate("a red cat", scheduler="lcm", save_int=True, **run)
    parts = replace(ours.components, unet=theirs.unet)
    assert_equal(result, diffusers_run(parts, theirs.scheduler, ["a red cat"], **run))


def test_a_rank_stabilised_one(tiny, tmp_path):
    path = diffusers(tiny, tmp_path / "rs.safetensors", use_rslora=True)
    run = {"seed": 7, "g": 3.0, "steps": 2}
    theirs, _ = drawn_by_diffusers(tiny, [(path, 1.0)], **run)
    pipe = Pipeline(tiny, device="cpu", dtype="float32", loras=[path])
    ours = pipe.generate("a red cat", **run, save_int=True)
    assert (ours.steps[-1].latents - theirs[-1]).abs().max() < 1e-4 * theirs[-1].abs().max()


def test_weight_0_changes_no_bit(tiny, tmp_path):
    path = kohya(tiny, tmp_path / "kohya.safetensors")
    without = load(tiny, dtype="float16")
    found = load(tiny, dtype="float16", loras=[(path, 0)])
    for part in ("unet", "text_encoder"):
        ours, theirs = getattr(found, part).state_dict(), getattr(without, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("part", "layer", "down", "up"),
    [
        ("unet", TO_Q, f"{TO_Q}.lora.down.weight", f"{TO_Q}.lora.up.weight"),
        *(
            ("unet", TO_Q, *(f"{start}{TO_Q}.lora_{x}.{name}weight" for x in "AB"))
            for start in ("base_model.model.", "unet.", "")
            for name in ("", "default.", "default_0.")
        ),
        (
            "text_encoder",
            Q_PROJ,
            *(f"base_model.model.text_model.{Q_PROJ}.lora_{x}.weight" for x in "AB"),
        ),
        (
            "unet",
            TO_OUT,
            *(
                f"{TO_OUT.replace('.to_out.0', '.processor.to_out_lora')}.{way}.weight"
                for way in ("down", "up")
            ),
        ),
        (
            "text_encoder",
            Q_PROJ,
            f"text_encoder.text_model.{Q_PROJ}.lora_linear_layer.down.weight",
            f"text_encoder.text_model.{Q_PROJ}.lora_linear_layer.up.weight",
        ),
        (
            "text_encoder",
            Q_PROJ,
            *(
                f"text_encoder.text_model.{Q_PROJ.replace('q_proj', f'to_q_lora.{way}.weight')}"
                for way in ("down", "up")
            ),
        ),
    ],
)
def test_every_way_of_naming_a_layer(tiny, plain, tmp_path, part, layer, down, up):
    width = weights(tiny, part)[layer].shape[0]
    a, b = torch.randn(2, width), torch.randn(width, 2)
    path = tmp_path / "one.safetensors"
    save_file({down: a.bfloat16(), up: b.bfloat16()}, path)
    changed = getattr(load(tiny, dtype="float32", loras=[(path, 0.5)]), part).state_dict()
    for name, tensor in getattr(plain, part).state_dict().items():
        change = changed[name] - tensor
        expected = 0.5 * b.bfloat16().float() @ a.bfloat16().float()
        if name == f"{layer}.weight":
            assert torch.allclose(change, expected, atol=1e-5)
        else:
            assert not change.any()


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_file_of_peft_merges_as_peft_merges_it(tiny, plain, tmp_path, part):
    network = getattr(plain, part)
    layers = ["to_q", "to_v", "conv1"] if part == "unet" else ["q_proj", "fc1"]
    config = {"r": RANK, "lora_alpha": 6, "alpha_pattern": {layers[0]: 3}, "use_rslora": True}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the two libraries are of different ages
        torch.manual_seed(0)
        adapted = get_peft_model(
            copy.deepcopy(network),
            LoraConfig(target_modules=layers, init_lora_weights=False, **config),
        )
        adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload().state_dict()
    path = tmp_path / "adapter_model.safetensors"
    found = getattr(load(tiny, dtype="float32", loras=[path]), part).state_dict()
    assert any(not torch.equal(merged[name], x) for name, x in network.state_dict().items())
    for name, tensor in merged.items():
        assert torch.allclose(found[name], tensor, atol=1e-5)


def test_two_adapters_in_one_file_are_not_taken_for_one(tmp_path):
    names = [f"{TO_Q}.lora_{x}.{name}.weight" for x in "AB" for name in ("one", "two")]
    path = write(tmp_path / "two.safetensors", dict.fromkeys(names, (2, 2)))
    with raises(ModelError, "two.safetensors", "has two adapters", "a file of its own"):
        Lora.read(path)


@pytest.mark.parametrize("place", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_a_file_with_nan_is_named(tiny, tmp_path, place):
    tensors = load_file(kohya(tiny, tmp_path / "nan.safetensors"))
    name = next(name for name in tensors if name.endswith(place))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    with raises(ModelError, "nan.safetensors", f"its tensor {name} has NaN"):
        load(tiny, loras=[tmp_path / "nan.safetensors"])


def test_what_was_handed_over_stays_as_it_was(tiny, tmp_path):
    path = kohya(tiny, tmp_path / "kohya.safetensors")
    mine = load(tiny, dtype="float32").unet
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    found = load(tiny, dtype="float32", unet=mine, loras=[path])
    like = load(tiny, dtype="float32", loras=[path])
    assert all(torch.equal(mine.state_dict()[name], tensor) for name, tensor in before.items())
    for name, tensor in like.unet.state_dict().items():
        assert torch.equal(found.unet.state_dict()[name], tensor)


def write(path, tensors, **metadata):
    save_file({k: torch.zeros(v) for k, v in tensors.items()}, path, metadata=metadata)
    return path


PAIR = {"lora_unet_x_to_q.lora_down.weight": (4, 8), "lora_unet_x_to_q.lora_up.weight": (8, 4)}
FLAT = f"lora_unet_{TO_Q.replace('.', '_')}"


@pytest.mark.parametrize(
    ("tensors", "rule"),
    [
        (PAIR, "which has no layer for its lora_unet_x_to_q"),
        (
            {f"{FLAT}.lora_down.weight": (4, 320), f"{FLAT}.lora_up.weight": (320, 4)},
            f"its {FLAT} is 320 x 320, that layer 16 x 16",
        ),
        ({f"{FLAT}.lora_down.weight": (4, 16)}, "but not its matrix up"),
        ({f"{FLAT}.lora_down.weight": (4,), f"{FLAT}.lora_up.weight": (4,)}, "are not matrices"),
        ({**PAIR, "lora_unet_x_to_q.dora_scale": (8, 1)}, "is a DoRA"),
        ({"lora_unet_x.hada_w1_a": (4, 8)}, "is a LoHa"),
        ({"lora_unet_x.lokr_w1": (4, 8)}, "is a LoKr"),
        ({**PAIR, "lora_unet_x.lora_mid.weight": (4, 4, 3, 3)}, "Tucker form"),
        ({"lora_te2_x.lora_down.weight": (4, 8)}, "is a LoRA for Stable Diffusion XL"),
        ({"emb_params": (2, 16)}, "is a textual inversion"),
        ({"model.diffusion_model.out.2.bias": (4,)}, "is a whole model"),
        ({"fc.weight": (4, 8)}, "is not a LoRA: its tensor fc.weight"),
    ],
)
def test_what_is_no_lora_for_this_model_is_refused_before_anything_is_loaded(
    tiny, tmp_path, tensors, rule
):
    with raises(ModelError, "x.safetensors", rule):
        inspect_model(tiny, loras=[write(tmp_path / "x.safetensors", tensors)])


def test_what_it_was_made_for_is_told(tiny, tmp_path):
    path = write(tmp_path / "x.safetensors", PAIR, ss_base_model_version="sdxl_base_v1-0")
    with raises(ModelError, "x.safetensors", remedy="it was made for sdxl_base_v1-0"):
        load(tiny, loras=[path])


def test_files_that_are_not_read(tiny, tmp_path):
    pickle = tmp_path / "x.pt"
    torch.save({"lora_unet_x.alpha": torch.ones(1)}, pickle)
    with raises(ModelError, "x.pt", "is a pickle", str(tmp_path / "x.safetensors")):
        load(tiny, loras=[pickle])
    whole = write(tmp_path / "cut.safetensors", PAIR)
    whole.write_bytes(whole.read_bytes()[:-8])
    with raises(ModelError, "cut.safetensors", "damaged or cut short"):
        load(tiny, loras=[whole])
    os.mkfifo(tmp_path / "pipe.safetensors")
    with raises(ModelError, "pipe.safetensors", "is a device or a pipe, not a file"):
        load(tiny, loras=[tmp_path / "pipe.safetensors"])
    with raises(ModelError, "lora='emoji-lcn'", "does not exist", "did you mean emoji-lcm?"):
        load(tiny, loras=["emoji-lcn"])
    for name in ("loras", "embeddings"):
        with raises(UsageError, f"{name}='x.safetensors'", "is no list", "['x.safetensors']"):
            load(tiny, **{name: Path("x.safetensors")})
    with raises(UsageError, "loras=('emoji-lcm', 0.5)", "is no list"):
        load(tiny, loras=("emoji-lcm", 0.5))
    with raises(ModelError, "lora='missing.safetensors'", "does not exist"):
        load(tiny, loras=["missing.safetensors"])
    with raises(ModelError, str(tmp_path), "is a folder"):
        load(tiny, loras=[tmp_path])


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "0.8", True, None])
def test_a_weight_is_a_finite_number(tiny, tmp_path, weight):
    with raises(UsageError, f"with weight {weight!r}", "finite", "1 is as it was trained"):
        Lora.read((write(tmp_path / "x.safetensors", PAIR), weight))


@pytest.mark.parametrize("weight", ["100", "1e30", "-20.5"])
def test_a_weight_that_leaves_nothing_of_the_model_is_refused(weight, capsys):
    """Before the file is looked for."""
    assert main(["generate", "x", "--model", "emoji", "--lora", f"x.safetensors:{weight}"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"with weight {float(weight):g} is out of range; give a number from -20 to 20" in told


def test_an_image_tells_its_loras_and_wants_them_back(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kohya(tiny, tmp_path / "pencil.safetensors", seed=1)
    kohya(tiny, tmp_path / "other.safetensors", seed=2)

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, " ".join(err.split())

    fast = ["--model", tiny, "--steps", "2", "--seed", "1", "--device", "cpu", "--dtype", "float32"]
    status, out, _ = run("generate", "a cat", *fast, "--lora", "pencil.safetensors:0.5")
    assert status == 0
    image = out.strip()
    status, out, _ = run("info", image)
    assert re.search(r"lora +0\.5 of pencil\.safetensors, sha256 [0-9a-f]{12}\n", out)
    told = json.loads(run("info", "--json", image)[1])[0]["model"]["loras"]
    assert [(lora["name"], lora["weight"]) for lora in told] == [("pencil.safetensors", 0.5)]

    again = ["replay", image, "--model", tiny, "--verify"]
    status, _, err = run(*again)
    assert status == 2
    assert "was drawn with the lora 'pencil.safetensors', which it does not contain; give" in err
    status, _, err = run(*again, "--lora", "other.safetensors")
    assert (status, "('other.safetensors' is another file)" in err) == (2, True)
    status, _, err = run(*again, "--lora", "pencil.safetensors", "--lora", "other.safetensors")
    assert (status, "without 'other.safetensors'; leave --lora" in err) == (2, True)
    assert run(*again, "--lora", "pencil.safetensors")[:2] == (0, "identical\n")

    status, _, err = run("generate", "a cat", *fast, "--lora", "pencil.safetensors:much")
    assert (status, "'much', which is not a number; give FILE, or FILE:WEIGHT" in err) == (2, True)


def test_a_sweep_with_another_lora_is_another(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kohya(tiny, tmp_path / "pencil.safetensors")
    sweep = ["sweep", "a {cat|dog}", "--model", str(tiny), "--steps", "2", "--seed", "1"]
    for lora, drawn in (("pencil.safetensors:0.5", 2), ("pencil.safetensors:0.5", 0)):
        assert main([*sweep, "--lora", lora, "--json"]) == 0
        assert sum(cell["drawn"] for cell in json.loads(capsys.readouterr().out)["cells"]) == drawn
    assert main([*sweep, "--lora", "pencil.safetensors:0.6", "--json"]) == 0
    told = capsys.readouterr()
    assert "was drawn with other LoRAs" in " ".join(told.err.split())
    grid = json.loads(told.out)["grid"]
    assert main(["info", grid]) == 0
    assert "--lora pencil.safetensors:0.6" in capsys.readouterr().out


def test_kohya_names_come_down_to_the_networks_own(tiny, tmp_path):
    """Every layer of a file finds the weights that it was made from."""
    path = kohya(tiny, tmp_path / "kohya.safetensors")
    names = set(weights(tiny, "unet"))
    shapes = {f"{name}.weight": tuple(w.shape) for name, w in weights(tiny, "unet").items()}
    found = Lora.read(path).find("unet", shapes, "the unet")
    in_file = [k for k in load_file(path) if k.startswith("lora_unet") and "lora_up" in k]
    assert len(found) == len(in_file) == sum(n.endswith(UNET + CONVOLUTIONS) for n in names)


def test_notes_without_end_are_refused(tiny, tmp_path):
    path = tmp_path / "notes.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"notes": "x" * 2**24})
    with raises(ModelError, "notes.safetensors", "at most 16777216 are read", "without"):
        load(tiny, loras=[path])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "not readable as JSON"),
        ("[4]", "not readable as JSON"),
        ('{"width": 4096}', "the unknown key 'width'"),
        ('{"steps": 0}', "breaks a rule: steps=0"),
    ],
)
def test_settings_that_a_lora_may_not_bring_are_refused(tiny, tmp_path, text, rule):
    path = write(tmp_path / "x.safetensors", PAIR, **{"sdpipe.json": text})
    with raises(ModelError, "x.safetensors", rule):
        inspect_model(tiny, loras=[path])
