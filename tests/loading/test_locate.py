import json
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.errors import raises
from support.hub_server import Hub

from sdpipe.errors import ModelError
from sdpipe.loading.locate import BUILT_IN_FOLDER, DEFAULT, find_configs, find_model, find_part

FILES = (
    "model_index.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)


def write(folder: Path, *, without: str = "") -> Path:
    """A folder with the names of a model's files."""
    for name in FILES:
        if name != without:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            text = "{}" if name == "model_index.json" else f"{name} in {folder}"
            (folder / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def somewhere(monkeypatch, tmp_path):
    """An empty folder to be in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("SDPIPE_MODEL", raising=False)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        yield hub


def test_a_built_in_model_comes_before_a_folder_of_its_name():
    write(Path("emoji"))
    assert find_model("emoji").path == BUILT_IN_FOLDER / "emoji"
    assert find_model("./emoji").path == Path("emoji")
    assert find_model(Path("emoji")).path == Path("emoji")


def test_a_folder_comes_before_the_hub():
    write(Path("owner/name"))
    found = find_model("owner/name")
    assert (found.name, found.path, found.revision) == ("owner/name", Path("owner/name"), None)


def test_home_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine")
    assert find_model("~/mine").path == tmp_path / "mine"


def test_a_hub_id(hub, tmp_path):
    repo = hub.add("owner/name", write(tmp_path / "published"))
    found = find_model("owner/name")
    assert found.revision == repo.commit
    assert (found.path / "unet/config.json").is_file()


def test_the_environment_names_the_default(monkeypatch):
    write(Path("mine"))
    monkeypatch.setenv("SDPIPE_MODEL", "mine")
    assert find_model().path == Path("mine")
    assert find_model("emoji").name == "emoji"


def test_a_model_that_the_environment_names_is_not_replaced(monkeypatch):
    monkeypatch.setenv("SDPIPE_MODEL", "./gone")
    with raises(ModelError, "SDPIPE_MODEL='./gone'", "does not exist"):
        find_model()


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_is_v1_4(hub, tmp_path, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("SDPIPE_MODEL", value)
    hub.add(DEFAULT, write(tmp_path / "published"))
    found = find_model()
    assert found.name == DEFAULT


def test_where_v1_4_cannot_be_had_the_built_in_model_is_named(hub):
    hub.stop()
    with raises(ModelError, value=DEFAULT, rule="the connection", remedy='Pipeline("emoji")'):
        find_model()


def test_offline_the_built_in_model_is_named(hub, tmp_path, monkeypatch):
    hub.use(monkeypatch, tmp_path / "cache", offline=True)
    with raises(ModelError, rule="HF_HUB_OFFLINE forbids", remedy='Pipeline("emoji")'):
        find_model()


def test_v1_4_asked_for_by_name_is_not_replaced(hub):
    hub.stop()
    with raises(ModelError, DEFAULT, "the connection to"):
        find_model(DEFAULT)


@pytest.mark.parametrize(
    ("value", "rule", "remedy"),
    [
        ("./models/mine", "does not exist", "here exists, but has no models"),
        ("/no/such/model", "does not exist", "/ exists, but has no no"),
        ("models/sd/mine", "does not exist", ""),
        ("models/", "does not exist", ""),
        ("mine.safetensors", "does not exist", ""),
        ("mine.ckpt", "does not exist", ""),
        (Path("emoji"), "does not exist", ""),
        ("emojy", "nor a hub id", "emoji"),
        ("stable diffusion", "neither a built-in model", "owner/name"),
        ("", "is empty", "a built-in"),
        ("https://huggingface.co/owner/name", "is a URL", "owner/name"),
    ],
)
def test_what_is_nowhere(value, rule, remedy):
    with raises(ModelError, f"model={str(value)!r}", rule, remedy):
        find_model(value)


@pytest.mark.parametrize("name", [name for name in FILES if "/" in name])
def test_a_missing_part_is_named(name):
    write(Path("mine"), without=name)
    part = name.partition("/")[0]
    with raises(ModelError, f"model='mine': the part {part}", f"no {name} in mine", f"{part}="):
        find_model("mine")


def test_folders_that_are_no_models(tmp_path):
    Path("empty").mkdir()
    Path("part").mkdir()
    Path("part/config.json").touch()
    Path("files").mkdir()
    Path("files/v1-4.safetensors").touch()
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    for name, rule, remedy in (
        ("empty", "empty folder", ""),
        ("part", "single part", "vae="),
        ("files", "without model_index.json", "v1-4.safetensors"),
        ("other", "not one in the diffusers layout", "folder of a model"),
    ):
        with raises(ModelError, name, rule, remedy):
            find_model(name)


def test_a_single_file():
    Path("mine.safetensors").touch()
    found = find_model("mine.safetensors")
    assert found.is_file
    assert found.path == Path("mine.safetensors")


def test_another_file():
    Path("mine.gguf").touch()
    with raises(ModelError, "mine.gguf", "another format", ".safetensors"):
        find_model("mine.gguf")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickles_are_refused(suffix):
    Path(f"my model{suffix}").write_bytes(pickle.dumps({}))
    with raises(ModelError, f"my model{suffix}", "is a pickle", f"'my model{suffix}'"):
        find_model(f"my model{suffix}")


def test_pickled_weights_in_a_folder_are_refused():
    write(Path("mine"), without="unet/diffusion_pytorch_model.safetensors")
    Path("mine/unet/diffusion_pytorch_model.bin").touch()
    with raises(ModelError, "mine/unet/diffusion_pytorch_model.bin", "is a pickle"):
        find_model("mine")


def test_the_command_that_converts_a_pickle_works():
    import torch
    from safetensors.torch import load_file

    shared = torch.arange(6.0).reshape(2, 3)
    torch.save({"state_dict": {"a": shared, "b": shared.T}, "step": 7}, "my model.ckpt")
    with pytest.raises(ModelError) as caught:
        find_model("my model.ckpt")
    words = shlex.split(caught.value.remedy.split("`")[1])
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)
    made = load_file("my model.safetensors")
    assert set(made) == {"a", "b"}
    assert torch.equal(made["b"], shared.T)


@pytest.mark.parametrize(
    ("index", "rule"),
    [
        (
            {"_class_name": "StableDiffusionXLPipeline"},
            "is a StableDiffusionXLPipeline",
        ),
        (
            {"_class_name": "Mine", "text_encoder_2": ["transformers", "CLIPTextModel"]},
            "is a Mine with the part text_encoder_2",
        ),
    ],
)
def test_a_model_of_another_family_is_refused_before_its_weights_are_fetched(hub, index, rule):
    folder = write(Path("mine"))
    (folder / "model_index.json").write_text(json.dumps(index))
    hub.add("owner/model", folder)
    for name in ("mine", "owner/model"):
        with raises(ModelError, f"model='{name}'", rule, "the family of v1-4"):
            find_model(name)
    assert hub.fetched() == ["model_index.json"]
    assert find_part("mine", "vae").weights("vae")  # whose parts may do


def test_a_part_that_is_listed_as_absent_is_no_matter():
    folder = write(Path("mine"))
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder_2": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert find_model("mine").path == Path("mine")


def test_a_part_from_a_folder_and_from_a_model():
    write(Path("mine"))
    assert find_part("mine", "vae").weights("vae") == [Path("mine") / FILES[8]]
    own = find_part("mine/vae", "vae")
    assert own.weights("vae") == [Path("mine") / FILES[8]]
    with raises(ModelError, "unet='mine/tokenizer': the part unet", "is missing"):
        find_part("mine/tokenizer", "unet")


def test_a_part_that_is_a_file():
    Path("x.safetensors").touch()
    with raises(ModelError, "unet='x.safetensors'", "is a file"):
        find_part("x.safetensors", "unet")
    assert find_part("x.safetensors", "vae").is_file


def test_configurations_are_fetched_without_weights(hub, tmp_path):
    hub.add(DEFAULT, write(tmp_path / "published"))
    find_configs(label="model='x.safetensors'")
    assert hub.fetched() == sorted(name for name in FILES if not name.endswith(".safetensors"))
    hub.requests.clear()
    find_configs(label="model='x.safetensors'")
    assert hub.requests == []


def test_configurations_that_cannot_be_had(hub):
    hub.stop()
    with raises(ModelError, f"model='x' needs v1-4's configurations. {DEFAULT}"):
        find_configs(label="model='x'")


def test_finding_imports_no_torch(tmp_path):
    code = (
        "import sys; from sdpipe.loading.locate import find_model, find_part\n"
        "find_model(sys.argv[1]); find_part(sys.argv[1], 'vae')\n"
        "sys.exit('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    )
    mine = write(tmp_path / "mine")
    assert subprocess.run([sys.executable, "-c", code, str(mine)], check=False).returncode == 0


@pytest.mark.parametrize("name", ["a" * 300, "./" + "c" * 300 + "/d", "a\0b"])
def test_what_no_path_can_be_is_refused_like_any_other_name(name):
    with raises(ModelError, "model="):
        find_model(name)


def test_a_pipe_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for find in (find_model, lambda path: find_part(path, "vae")):
        with raises(ModelError, "pipe.safetensors", "is a device or a pipe, not a file"):
            find(tmp_path / "pipe.safetensors")
