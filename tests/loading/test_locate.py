import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub_server import Hub

from sdpipe.errors import ModelError, SdpipeWarning
from sdpipe.loading import locate
from sdpipe.loading.locate import DEFAULT, configurations, find_model, find_part

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
            (folder / name).write_text(f"{name} in {folder}")
    return folder


@pytest.fixture(autouse=True)
def somewhere(monkeypatch, tmp_path):
    """An empty folder to be in, and a built-in model that is certainly there."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("SDPIPE_MODEL", raising=False)
    monkeypatch.setattr(locate, "BUILT_IN_FOLDER", tmp_path / "built in")
    write(tmp_path / "built in/emoji")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        yield hub


def test_a_built_in_model_comes_before_a_folder_of_its_name(tmp_path):
    write(Path("emoji"))
    assert find_model("emoji").path == tmp_path / "built in/emoji"
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
    with pytest.raises(ModelError, match=r"^SDPIPE_MODEL='./gone' does not exist"):
        find_model()


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_is_v1_4(hub, tmp_path, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("SDPIPE_MODEL", value)
    hub.add(DEFAULT, write(tmp_path / "published"))
    found = find_model()
    assert (found.name, found.fallback) == (DEFAULT, False)


def test_where_v1_4_cannot_be_had_the_built_in_model_draws_and_says_so(hub):
    hub.stop()
    with pytest.warns(SdpipeWarning, match=rf"{DEFAULT}.*connection.*built-in model, emoji"):
        found = find_model()
    assert (found.name, found.fallback) == ("emoji", True)


def test_offline_the_built_in_model_draws(hub, tmp_path, monkeypatch):
    hub.use(monkeypatch, tmp_path / "cache", offline=True)
    with pytest.warns(SdpipeWarning, match="not cached, and HF_HUB_OFFLINE forbids"):
        assert find_model().fallback


def test_v1_4_asked_for_by_name_is_not_replaced(hub):
    hub.stop()
    with pytest.raises(ModelError, match="the connection to"):
        find_model(DEFAULT)


def test_no_fallback_without_a_built_in_model(hub, monkeypatch, tmp_path):
    hub.stop()
    monkeypatch.setattr(locate, "BUILT_IN_FOLDER", tmp_path / "none")
    with pytest.raises(ModelError, match=r"'emoji' is not in this installation .*install sdpipe"):
        find_model()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("./models/mine", r"no such folder or file; .*here is there, and has no models"),
        ("/no/such/model", r"/ is there, and has no no"),
        ("models/sd/mine", r"does not exist"),
        ("models/", r"does not exist"),
        ("mine.safetensors", r"does not exist"),
        ("mine.ckpt", r"does not exist"),
        (Path("emoji"), r"does not exist"),
        ("emojy", r"or a hub id, which has the form owner/name .*Did you mean emoji"),
        ("stable diffusion", r"is neither a built-in model"),
        ("", r"is empty; name a built-in"),
        ("https://huggingface.co/owner/name", r"is an address; give .* owner/name"),
    ],
)
def test_what_is_nowhere(value, message):
    with pytest.raises(ModelError, match=message):
        find_model(value)


@pytest.mark.parametrize("name", [name for name in FILES if "/" in name])
def test_a_missing_part_is_named(name):
    write(Path("mine"), without=name)
    part = name.partition("/")[0]
    message = rf"^model='mine': the part {part} is missing, for there is no {name} in mine"
    with pytest.raises(ModelError, match=message):
        find_model("mine")


def test_folders_that_are_no_models(tmp_path):
    Path("empty").mkdir()
    Path("part").mkdir()
    Path("part/config.json").touch()
    Path("files").mkdir()
    Path("files/v1-4.safetensors").touch()
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    for name, message in {
        "empty": "is an empty folder",
        "part": "is the folder of a single part, .*vae=, text_encoder= or unet=",
        "files": "give the file in it: v1-4.safetensors",
        "other": "has no model_index.json",
    }.items():
        with pytest.raises(ModelError, match=message):
            find_model(name)


def test_a_single_file():
    Path("mine.safetensors").touch()
    found = find_model("mine.safetensors")
    assert found.is_file
    assert found.path == Path("mine.safetensors")


def test_another_file():
    Path("mine.gguf").touch()
    with pytest.raises(ModelError, match=r"'mine.gguf' is neither a folder nor a .safetensors"):
        find_model("mine.gguf")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickles_are_refused(suffix):
    Path(f"my model{suffix}").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match=rf"is a pickle.*python -c .*'my model{suffix}'"):
        find_model(f"my model{suffix}")


def test_pickled_weights_in_a_folder_are_refused():
    write(Path("mine"), without="unet/diffusion_pytorch_model.safetensors")
    Path("mine/unet/diffusion_pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"part unet is there only as diffusion_pytorch_model.bin"):
        find_model("mine")


def test_the_command_that_converts_a_pickle_works():
    import torch
    from safetensors.torch import load_file

    shared = torch.arange(6.0).reshape(2, 3)
    torch.save({"state_dict": {"a": shared, "b": shared.T}, "step": 7}, "my model.ckpt")
    with pytest.raises(ModelError) as caught:
        find_model("my model.ckpt")
    words = shlex.split(str(caught.value).partition(": ")[2])
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)
    made = load_file("my model.safetensors")
    assert set(made) == {"a", "b"}
    assert torch.equal(made["b"], shared.T)


def test_a_part_from_a_folder_and_from_a_model():
    write(Path("mine"))
    assert find_part("mine", "vae").weights("vae") == [Path("mine") / FILES[8]]
    own = find_part("mine/vae", "vae")
    assert own.weights("vae") == [Path("mine") / FILES[8]]
    with pytest.raises(ModelError, match=r"^unet='mine/tokenizer': the part unet is missing"):
        find_part("mine/tokenizer", "unet")


def test_a_part_that_is_a_file():
    Path("x.safetensors").touch()
    with pytest.raises(ModelError, match=r"^unet='x.safetensors' is a file; a part is given as"):
        find_part("x.safetensors", "unet")
    assert find_part("x.safetensors", "vae").is_file


def test_configurations_are_fetched_without_weights(hub, tmp_path):
    hub.add(DEFAULT, write(tmp_path / "published"))
    configurations(label="model='x.safetensors'")
    assert hub.fetched() == sorted(name for name in FILES if not name.endswith(".safetensors"))
    hub.requests.clear()
    configurations(label="model='x.safetensors'")
    assert hub.requests == []


def test_configurations_that_cannot_be_had(hub):
    hub.stop()
    with pytest.raises(ModelError, match=rf"^model='x' needs v1-4's configurations, and {DEFAULT}"):
        configurations(label="model='x'")


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
    with pytest.raises(ModelError, match="model="):
        find_model(name)
