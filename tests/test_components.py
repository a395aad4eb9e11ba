import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.errors import raises
from support.hub_server import Hub
from support.tiny import (
    tiny_model,
    tiny_text_encoder,
    tiny_unet,
    tiny_vae,
    write_tokenizer,
    write_weights,
)
from transformers import CLIPConfig, CLIPModel

from sdpipe import Pipeline
from sdpipe.components import Components, load
from sdpipe.errors import ModelError, UsageError

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny model with full weights and the fp16 variant, which nobody changes."""
    folder = tiny_model(tmp_path_factory.mktemp("tiny") / "both")
    return tiny_model(folder, variant="fp16", dtype=torch.float16)


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of it with the full weights alone, to damage."""
    return Path(
        shutil.copytree(tiny, tmp_path / "model", ignore=shutil.ignore_patterns("*.fp16.*"))
    )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        yield hub


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_folder_gives_the_five_parts(folder):
    found = load(folder, device="cpu", dtype="float32")
    assert isinstance(found, Components)
    assert (found.model.name, found.model.folder) == (str(folder), folder)
    assert (found.model.revision, found.model.variant, found.model.parts) == (
        None,
        None,
        {},
    )
    assert (found.device, found.dtype) == (torch.device("cpu"), torch.float32)
    assert found.defaults == {"width": 32, "height": 32}
    assert found.scheduler_config["beta_start"] == 0.00085
    assert found.tokenizer("a red cat").input_ids[1:-1] == found.tokenizer.convert_tokens_to_ids(
        ["a</w>", "red</w>", "cat</w>"]
    )
    wanted = load_file(folder / UNET)
    assert all(torch.equal(found.unet.state_dict()[k], v) for k, v in wanted.items())


def test_the_networks_are_for_inference(folder):
    found = load(folder, dtype="float32")
    for network in (found.text_encoder, found.unet, found.vae):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        assert not hasattr(network, "_hf_hook")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", torch.bfloat16])
def test_every_dtype(folder, dtype):
    found = load(folder, dtype=dtype)
    for network in (found.text_encoder, found.unet, found.vae):
        assert {p.dtype for p in network.parameters()} == {found.dtype}


def test_diffusers_opens_the_same_folder(folder):
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    ours = load(folder, dtype="float32")
    for part in ("text_encoder", "unet", "vae"):
        assert same(getattr(ours, part), getattr(theirs, part))


@pytest.mark.parametrize(
    ("dtype", "variant"),
    [("auto", "fp16"), ("float16", "fp16"), ("bfloat16", "fp16"), ("float32", None)],
)
def test_the_variant_is_taken_unless_float32_is_asked_for(tiny, dtype, variant):
    assert load(tiny, dtype=dtype).model.variant == variant


def test_a_variant_alone_is_raised_to_float32(tmp_path):
    folder = tiny_model(tmp_path, variant="fp16", dtype=torch.float16)
    found = load(folder, dtype="float32")
    assert found.model.variant == "fp16"
    rounded = load_file(folder / UNET.replace(".safe", ".fp16.safe"))
    assert all(torch.equal(found.unet.state_dict()[k], v.float()) for k, v in rounded.items())


def test_weights_in_shards(folder):
    whole = load(folder, dtype="float32")
    whole.unet.save_pretrained(folder / "unet", max_shard_size="300KB")
    (folder / UNET).unlink(missing_ok=True)
    assert len(list((folder / "unet").glob("*-of-*"))) > 1
    assert same(load(folder, dtype="float32").unet, whole.unet)


def test_a_prompt_is_no_longer_than_the_encoder_takes(folder):
    config = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    assert load(folder).tokenizer.model_max_length == 77


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"g": 3, "steps": 30, "lms_order": 2}, {"g": 3.0, "steps": 30, "lms_order": 2}),
        ({"width": 64}, {"width": 64}),
        ({"scheduler": "ddim", "height": 48}, {"scheduler": "ddim", "height": 48}),
        ({"steps": None}, {}),
    ],
)
def test_a_models_own_settings(folder, values, expected):
    (folder / "sdpipe.json").write_text(json.dumps(values))
    assert load(folder).defaults == {"width": 32, "height": 32, **expected}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('{"guidance": 3}', "unknown key 'guidance'"),
        ('{"seed": 3}', "unknown key 'seed'"),
        ('{"steps": 0}', "breaks a rule: steps=0"),
        ('{"width": 100}', "breaks a rule: width=100"),
        ('{"scheduler": "best"}', "breaks a rule: scheduler='best'"),
        ("{", "is not readable as JSON"),
        ("[]", "is not a JSON object"),
    ],
)
def test_settings_of_its_own_that_break_a_rule(folder, text, rule):
    (folder / "sdpipe.json").write_text(text)
    with raises(ModelError, "sdpipe.json", rule):
        load(folder)


def test_a_truncated_file(folder):
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-1])
    with raises(ModelError, UNET, "damaged or cut short", "copy or download"):
        load(folder)


def test_a_corrupted_file(folder):
    data = bytearray((folder / UNET).read_bytes())
    data[8:20] = b"#" * 12
    (folder / UNET).write_bytes(data)
    with raises(ModelError, "the unet in", "damaged or cut short", "download it again"):
        load(folder)


@pytest.mark.parametrize("name", [UNET, "unet/config.json", "tokenizer/vocab.json"])
def test_doing_what_the_message_on_a_damaged_cache_says_repairs_it(hub, folder, name):
    hub.add("owner/name", folder)
    path = load("owner/name").model.folder / name
    path.write_bytes(b"#" * path.stat().st_size)  # the size is right
    for _ in range(2):
        with raises(ModelError, name.partition("/")[0], remedy="delete ") as caught:
            load("owner/name")
    words = caught.value.remedy.removeprefix("delete ").partition(", and the next run")[0]
    for file in shlex.split(words):
        Path(file).unlink()
    load("owner/name")


@pytest.mark.parametrize(
    ("text", "rule", "remedy"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of git-lfs", "pull"),
        ("\n<!DOCTYPE html><html><title>Sign in", "is a web page", "log in first"),
        ("<?xml version='1.0'?><Error><Code>AccessDenied", "is a web page", "log in first"),
    ],
)
def test_what_lies_in_place_of_a_file_is_named(folder, text, rule, remedy):
    for name in (UNET, "unet/config.json", "scheduler/scheduler_config.json", "model_index.json",
                 "tokenizer/vocab.json", "words.json"):  # fmt: skip
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_text(text)
        with raises(ModelError, Path(name).name, rule, remedy):
            load(folder)
        if before is not None:
            (folder / name).write_bytes(before)


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"Entry not found", "is a text that begins with 'Entry not found'"),
        (b"", "is empty"),
        (b"#" * 8 + b"\0\xff" * 50, "is damaged or cut short"),
    ],
)
def test_what_is_no_file_of_weights_is_named(tmp_path, data, rule):
    (tmp_path / "x.safetensors").write_bytes(data)
    for key in ("loras", "embeddings"):
        with raises(ModelError, "x.safetensors", rule):
            load("emoji", **{key: [tmp_path / "x.safetensors"]})


def test_a_pickle_by_another_name_is_converted(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    with raises(ModelError, "x.safetensors", "is a pickle", "x-converted.safetensors`"):
        load(tmp_path / "x.safetensors")


@pytest.mark.filterwarnings("ignore:the latents grew")
@pytest.mark.parametrize(
    ("file", "name"),
    [
        (UNET, "conv_out.bias"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias"),
        ("text_encoder/model.safetensors", "text_model.final_layer_norm.bias"),
    ],
)
def test_weights_that_are_not_finite_are_named_with_their_file(folder, file, name):
    tensors = load_file(folder / file)
    tensors[name][0] = float("nan")
    save_file(tensors, folder / file)
    pipe = Pipeline(folder, device="cpu", dtype="float32")
    with raises(ModelError, str(folder / file), f"its tensor {name} has NaN", "again"):
        pipe.generate("a cat", steps=2)


@pytest.mark.filterwarnings("ignore:the latents grew")
def test_weights_that_a_type_cannot_hold_are_named_with_it(folder):
    tensors = load_file(folder / UNET)
    tensors["conv_out.bias"][0] = 1e6
    save_file(tensors, folder / UNET)
    Pipeline(folder, device="cpu", dtype="float32").generate("a cat", steps=2)
    pipe = Pipeline(folder, device="cpu", dtype="float16")
    with raises(ModelError, "the unet", "infinite in float16, conv_out.bias first", "float32"):
        pipe.generate("a cat", steps=2)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        (UNET, "conv_out.bias"),
        ("vae/diffusion_pytorch_model.safetensors", "post_quant_conv.weight"),
        ("text_encoder/model.safetensors", "text_model.final_layer_norm.weight"),
    ],
)
@pytest.mark.parametrize("change", ["missing", "reshaped"])
def test_a_tensor_that_is_missing_or_of_another_shape(folder, file, key, change):
    tensors = load_file(folder / file)
    if change == "missing":
        del tensors[key]
    else:
        tensors[key] = torch.zeros(3)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    part, name = file.partition("/")[0], key.removeprefix("text_model.")
    rule = name if change == "missing" else f"{name} has the shape [3]"
    with raises(ModelError, f"the {part}", rule):
        load(folder)


def test_a_configuration_that_is_no_json(folder):
    (folder / "unet/config.json").write_text("{")
    with raises(ModelError, "unet/config.json", "is not readable as JSON"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "changes", "value", "rule"),
    [
        ("unet", {"in_channels": 9}, "in_channels=9", "is an inpainting model"),
        ("unet", {"in_channels": 8}, "in_channels=8", "is an editing model"),
        ("unet", {"out_channels": 8}, "out_channels=8", "more than the noise"),
        ("unet", {"addition_embed_type": "text_time"}, "text_time", "Stable Diffusion XL"),
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim=256", "works otherwise"),
        ("unet", {"num_class_embeds": 10}, "num_class_embeds=10", "works otherwise"),
        ("unet", {"_class_name": "UNetMotionModel"}, "UNetMotionModel", "works otherwise"),
        ("vae", {"shift_factor": 0.1}, "shift_factor=0.1", "works otherwise"),
        ("text_encoder", {"model_type": "t5"}, "model_type='t5'", "works otherwise"),
        ("unet", {"cross_attention_dim": 768}, "cross_attention_dim=768", "hidden_size=16"),
        ("vae", {"latent_channels": 16}, "in_channels=4", "latent_channels=16"),
    ],
)
def test_parts_that_do_not_fit(folder, file, changes, value, rule):
    edit(folder / file / "config.json", **changes)
    with raises(ModelError, value, rule):
        load(folder)


def test_a_tokenizer_that_knows_too_much(folder, tiny):
    with raises(ModelError, "537 tokens", "embeddings for 500"):
        load(folder, text_encoder=tiny_text_encoder(500))


def test_a_part_from_another_folder(folder, tmp_path):
    other = tiny_model(tmp_path / "other", seed=1)
    swapped = load(folder, vae=other, dtype="float32")
    assert same(swapped.vae, load(other, dtype="float32").vae)
    assert same(swapped.unet, load(folder, dtype="float32").unet)
    digest = hashlib.sha256((other / "vae/diffusion_pytorch_model.safetensors").read_bytes())
    assert swapped.model.parts == {"vae": str(other)}
    assert swapped.model.identity()["parts"] == {"vae": f"other@sha256:{digest.hexdigest()}"}
    assert same(load(folder, vae=other / "vae", dtype="float32").vae, swapped.vae)


def test_the_part_that_is_replaced_may_be_missing(folder, tiny):
    shutil.rmtree(folder / "vae")
    with raises(ModelError, "the part vae", "is missing"):
        load(folder)
    assert load(folder, vae=tiny).model.parts == {"vae": str(tiny)}


def test_a_whole_clip_as_text_encoder_from_the_hub(hub, folder, tmp_path):
    published = tmp_path / "clip"
    length = len(write_tokenizer(published))
    text = tiny_text_encoder(length)
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32}
    config = CLIPConfig(text_config=text.config.to_dict(), vision_config=vision)
    whole = CLIPModel(config)
    config.save_pretrained(published)
    write_weights(published / "model", whole, None, torch.float32)
    repo = hub.add("openai/clip", published)

    found = load(folder, text_encoder="openai/clip", dtype="float32")
    wanted = {k: v for k, v in whole.state_dict().items() if k.startswith("text_model.")}
    ours = found.text_encoder.state_dict()
    assert {f"text_model.{k}" for k in ours} == set(wanted)
    assert all(torch.equal(ours[k.removeprefix("text_model.")], wanted[k]) for k in wanted)
    assert found.model.parts == {"text_encoder": f"openai/clip@{repo.commit}"}
    assert found.tokenizer.name_or_path.endswith(repo.commit)


def test_a_tokenizer_from_elsewhere(folder, tiny, tmp_path):
    write_tokenizer(tmp_path / "words")
    for place in (tiny, tiny / "tokenizer", tmp_path / "words"):
        found = load(folder, tokenizer=place)
        assert found.tokenizer.name_or_path.startswith(str(place))
        assert found.model.parts == {"tokenizer": str(place)}


def test_modules_are_taken_as_they_are(folder):
    vae, unet = tiny_vae(), tiny_unet()
    found = load(folder, vae=vae, unet=unet, dtype="float16")
    assert found.vae is vae
    assert found.unet is unet
    assert unet.dtype == torch.float16
    assert not unet.training
    assert found.model.identity()["sha256"] is None
    assert found.model.parts["unet"] == "a UNet2DConditionModel that was passed"


def test_all_parts_handed_over_need_no_model(hub, tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    found = load(
        tokenizer=tokenizer,
        text_encoder=tiny_text_encoder(len(tokenizer)),
        unet=tiny_unet(size=64),
        vae=tiny_vae(),
    )
    assert hub.requests == []
    assert (found.model.name, found.model.folder) == ("parts", None)
    assert found.scheduler_config["beta_end"] == 0.012
    assert found.defaults == {"width": 64, "height": 64}


def test_identity(folder, tmp_path, hub):
    local = load(folder).model.identity()
    assert local == {
        "name": folder.name,
        "revision": None,
        "variant": None,
        "sha256": hashlib.sha256((folder / UNET).read_bytes()).hexdigest(),
        "prediction": None,
        "parts": {},
        "loras": [],
        "embeddings": [],
    }
    json.dumps(local)
    repo = hub.add("owner/name", folder)
    found = load("owner/name")
    assert (found.model.identity()["revision"], found.model.identity()["sha256"]) == (
        repo.commit,
        None,
    )
    assert load("owner/name", unet=folder).model.identity()["sha256"] == local["sha256"]
    swapped = load(folder, unet="owner/name").model.identity()
    assert swapped["parts"] == {"unet": f"owner/name@{repo.commit}"}
    assert (swapped["revision"], swapped["sha256"]) == (None, None)


def test_from_the_hub_and_then_without_a_request(hub, tiny):
    repo = hub.add("owner/name", tiny)
    found = load("owner/name", dtype="float16")
    assert (found.model.revision, found.model.variant) == (repo.commit, "fp16")
    hub.requests.clear()
    load(f"owner/name@{repo.commit}", dtype="float16")
    load("owner/name", dtype="bfloat16")
    assert hub.requests == []


@pytest.mark.parametrize("given", [{"device": "gpu"}, {"dtype": "half"}, {"device": "cuda:99"}])
def test_a_wrong_device_or_dtype_is_told_before_the_model_is_looked_for(given):
    with pytest.raises(UsageError):
        load("./nowhere", **given)


def test_usage_and_names_are_told_without_torch(folder, tmp_path):
    (folder / UNET).write_bytes(b"")
    edit(tiny_model(tmp_path / "unfit") / "unet/config.json", in_channels=9)
    code = (
        "import sys; from sdpipe.components import load\n"
        "from sdpipe.errors import SdpipeError\n"
        "wrong = [('emoji', {'device': 'gpu'}), ('emoji', {'dtype': 'half'}), ('./gone', {})]\n"
        "for model, more in [*wrong, (sys.argv[1], {}), (sys.argv[2], {})]:\n"
        "    try: load(model, **more)\n"
        "    except SdpipeError: pass\n"
        "    else: sys.exit(3)\n"
        "sys.exit(4 * ('torch' in sys.modules))\n"
    )
    folders = [str(folder), str(tmp_path / "unfit")]
    assert subprocess.run([sys.executable, "-c", code, *folders], check=False).returncode == 0


def test_loading_is_silent_and_leaves_the_libraries_as_they_were(folder, capfd):
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = (
        diffusers_logging.get_verbosity(),
        transformers_logging.get_verbosity(),
        diffusers_logging.is_progress_bar_enabled(),
        transformers_logging.is_progress_bar_enabled(),
    )
    load(folder, dtype="float16")
    after = (
        diffusers_logging.get_verbosity(),
        transformers_logging.get_verbosity(),
        diffusers_logging.is_progress_bar_enabled(),
        transformers_logging.is_progress_bar_enabled(),
    )
    assert before == after
    assert capfd.readouterr() == ("", "")


MEASURE = """
import sys, torch
from pathlib import Path
from sdpipe import Pipeline
from sdpipe.components import load

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

load(sys.argv[1], dtype="float32")
before = memory("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")
unet = load(sys.argv[2], dtype="float32").unet
total = sum(float(p.sum()) for p in unet.parameters())  # so that all of it is read
size = sum(p.numel() * p.element_size() for p in unet.parameters())
print((memory("VmHWM:") - before) / size)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux tells the peak")
@pytest.mark.slow
def test_loading_makes_no_second_copy(folder, tmp_path):
    big = shutil.copytree(folder, tmp_path / "big")
    with torch.device("meta"):
        unet = tiny_unet(block_out_channels=(256, 640))
    unet.save_config(big / "unet")
    save_file({k: torch.ones(v.shape) for k, v in unet.state_dict().items()}, big / UNET)
    assert (big / UNET).stat().st_size > 250e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(big)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.9 < float(done.stdout) < 1.2
