"""`sdpipe doctor` and `python -m sdpipe.doctor`, also where the installation is broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.hub_server import Hub
from support.tiny import tiny_model

import sdpipe
from sdpipe.doctor import (
    V1_4_BYTES,
    Finding,
    examine_cache,
    examine_default_model,
    examine_memory,
    examine_outputs,
    examine_packages,
    smoke_test,
    trial,
)
from sdpipe.loading.locate import DEFAULT, find_model

UNET = "unet/diffusion_pytorch_model.safetensors"


def install(folder: Path, name: str, version: str, *needs: str, code: str | None = None) -> None:
    """What pip leaves of a package: its record, and its module."""
    record = folder / f"{name}-{version}.dist-info"
    record.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    (record / "METADATA").write_text("\n".join(lines) + "\n")
    if code is not None:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)


def doctor(first: Path, cwd: Path, *arguments: str, module: str = "sdpipe.doctor"):
    """Runs it where `first` comes before all other packages: status, stdout, stderr."""
    path = os.pathsep.join([str(first), str(Path(sdpipe.__file__).parents[1])])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SDPIPE"))}
    environment = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "home")}
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stdout, ended.stderr


def find(findings, subject):
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


@pytest.mark.slow
def test_a_whole_installation(tmp_path):
    status, out, err = doctor(tmp_path, tmp_path, "doctor", "--json", module="sdpipe")
    report = json.loads(out)
    found = {values["subject"]: Finding(**values) for values in report["findings"]}
    assert (status, report["works"]) == (0, True), out
    assert err == ""
    assert found["trial"].facts["difference"] <= 2
    assert found["trial"].facts["seconds"] > 0
    assert found["torch"].facts["version"].startswith("2.")
    assert found["device, dtype"].facts["dtype"] in ("float32", "float16", "bfloat16")
    assert found["default model"].state == "note"
    assert "built-in model" in found["default model"].remedy
    assert found["outputs"].facts["folder"] == str(tmp_path / "outputs")
    assert not (tmp_path / "outputs").exists()


# What really happens when torchvision was built for another torch: importing it raises this, and
# transformers then says: Could not import module 'PreTrainedModel'.
@pytest.mark.slow
def test_an_unrelated_package_that_breaks_the_imports_is_named(tmp_path):
    code = 'raise RuntimeError("operator torchvision::nms does not exist")'
    install(tmp_path / "first", "torchvision", "0.19.0", "torch==2.4.0", code=code)
    status, out, _ = doctor(tmp_path / "first", tmp_path, "--offline")
    assert status == 1
    (drawn,) = [line for line in out.splitlines() if " trial " in line]
    assert drawn.startswith("problem")
    assert "operator torchvision::nms does not exist" in drawn
    assert "torchvision)" in drawn
    assert "uninstall" in drawn
    (note,) = [line for line in out.splitlines() if line.startswith("note     torchvision")]
    assert "torch==2.4.0" in note


def test_a_damaged_torch_does_not_end_the_examination(tmp_path):
    code = 'raise OSError("libtorch_cpu.so: cannot open shared object file")'
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(code)
    status, out, err = doctor(tmp_path, tmp_path, "doctor", module="sdpipe")
    assert (status, err) == (1, "")
    (drawn,) = [line for line in out.splitlines() if " trial " in line]
    assert "importing torch failed: OSError: libtorch_cpu.so" in drawn
    assert "torch) -> reinstall" in drawn
    assert "ok       model emoji" in out
    assert "ok       outputs" in out


def test_a_missing_module_is_installed(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import sympathy.core")
    _, out, _ = doctor(tmp_path, tmp_path, "--offline")
    assert "-> pip install sympathy\n" in out


def trials(**by_device):
    """Stands in for `run_trial`: findings of a machine whose one GPU is chosen by auto."""
    chosen = Finding("device, dtype", "ok", "", facts={"device": "cuda", "dtype": "float16"})
    return lambda device: [chosen, by_device[device]]


FAILED = Finding("trial", "problem", "drawing on cuda failed: out of memory", "free its memory")
DRAWN = Finding("trial", "ok", "drew 2 steps on cpu", facts={"seconds": 1.0})


def test_where_the_gpu_fails_the_cpu_is_tried():
    *_, on_gpu, on_cpu = smoke_test(run=trials(auto=FAILED, cpu=DRAWN))
    assert on_gpu == FAILED
    assert (on_cpu.subject, on_cpu.state, on_cpu.facts) == ("trial on cpu", "ok", DRAWN.facts)


def test_where_the_gpu_draws_the_cpu_is_not_tried():
    assert [f.subject for f in smoke_test(run=trials(auto=DRAWN))] == ["device, dtype", "trial"]


def test_where_nothing_can_be_drawn_the_libraries_are_imported():
    note = Finding("trial", "note", "nothing was drawn")
    assert list(smoke_test(draw=False, run=trials(none=note)))[-1] == note


@pytest.mark.filterwarnings("ignore::sdpipe.SdpipeWarning")  # random weights draw far outside
def test_a_wrong_image_is_a_problem(tmp_path):
    *_, found = trial("cpu", str(tiny_model(tmp_path, size=128)))
    assert (found.subject, found.state) == ("trial", "problem")
    assert found.facts["difference"] > 8
    assert found.remedy


def test_a_gpu_that_cannot_be_used(monkeypatch):
    """A torch without CUDA is told of a GPU, and fails as it does by itself."""
    if torch.backends.cuda.is_built():
        pytest.skip("needs a torch without CUDA")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    found = list(trial("auto"))
    assert find(found, "cuda:0").state == "note"
    assert find(found, "device, dtype").facts["device"] == "cuda"
    assert found[-1].state == "problem"
    assert found[-1].facts["stage"] == "drawing on cuda"
    assert "--device cpu" in found[-1].remedy


def test_a_library_that_crashes_does_not_take_the_doctor_with_it(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import os\nos.abort()")
    status, out, _ = doctor(tmp_path, tmp_path, "--offline")
    assert status == 1
    (drawn,) = [line for line in out.splitlines() if " trial " in line]
    assert "SIGABRT" in drawn
    assert str(tmp_path / "torch" / "__init__.py") in drawn
    assert "ok       outputs" in out


def test_typer_is_not_needed_to_find_that_it_is_missing(tmp_path):
    (tmp_path / "typer").mkdir()
    (tmp_path / "typer" / "__init__.py").write_text("raise ImportError")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError")  # quickly
    assert doctor(tmp_path, tmp_path, "--help", module="sdpipe")[0] == 1
    _, out, err = doctor(tmp_path, tmp_path, "--offline")
    assert err == ""
    assert "ok       outputs" in out


def test_versions_that_do_not_fit(tmp_path, monkeypatch):
    install(tmp_path, "transformers", "5.1.0")
    install(tmp_path, "xformers", "0.0.28", "torch==2.5.0", 'numpy; extra == "more"')
    install(tmp_path, "torchao", "0.9", "torch>=2.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = list(examine_packages())
    old = find(found, "transformers")
    assert (old.state, old.facts["version"]) == ("note", "5.1.0")
    assert old.remedy == 'pip install "transformers<6,>=5.23"'
    assert "torch==2.5.0" in find(found, "xformers").text
    assert not [finding for finding in found if finding.subject == "torchao"]


def test_packages_that_are_missing(tmp_path, monkeypatch):
    needs = ("torch>=2.9", "diffusers<0.50", "scipy>=1.13", 'matplotlib>=3.9; extra == "show"')
    install(tmp_path, "sdpipe", "0.1.0", *needs, 'pytest; extra == "test"')
    install(tmp_path, "torch", "2.9.1+cu128")
    install(tmp_path, "diffusers", "99.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = list(examine_packages())
    scipy = find(found, "scipy")
    assert (scipy.state, scipy.remedy) == ("problem", 'pip install "scipy>=1.13"')
    assert find(found, "torch").state == "ok"
    assert find(found, "diffusers").state == "note"
    assert find(found, "matplotlib").state == "note"
    assert not [finding for finding in found if finding.subject == "pytest"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        yield hub


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("published"))


def test_what_would_be_fetched_is_asked_and_not_fetched(hub, published, tmp_path):
    repo = hub.add(DEFAULT, published)
    repo.files["v1-4.ckpt"] = b"pickle" * 1000
    found = examine_default_model()
    wanted = {name: len(data) for name, data in repo.files.items() if not name.endswith("ckpt")}
    assert found.state == "ok"
    assert found.facts["files"] == sorted(wanted)
    assert found.facts["bytes"] == sum(wanted.values())
    assert hub.fetched() == []
    assert not (tmp_path / "cache").exists()


def test_a_model_that_is_cached_and_whole(hub, published):
    hub.add(DEFAULT, published)
    find_model()
    hub.requests.clear()
    assert (examine_default_model().state, examine_default_model(offline=True).state) == (
        "ok",
        "ok",
    )
    cache, model = examine_cache()
    assert (cache.facts["models"], model.state, model.facts["model"]) == (1, "ok", DEFAULT)
    assert "complete" in model.text
    assert hub.requests == []


def test_a_blob_that_is_missing(hub, published):
    hub.add(DEFAULT, published)
    folder = find_model().path
    (folder / UNET).resolve().unlink()
    hub.requests.clear()
    found = examine_default_model()
    assert (found.state, found.facts["missing"]) == ("ok", [UNET])
    assert found.facts["bytes"] == len(hub.repos[DEFAULT].files[UNET])
    assert hub.fetched() == []
    hub.stop()
    assert examine_default_model().state == "note"
    damage = next(examine_cache())
    assert (damage.subject, damage.state) == ("cache", "note")
    assert damage.remedy


def test_weights_that_were_cut_short(hub, published):
    hub.add(DEFAULT, published)
    blob = (find_model().path / UNET).resolve()
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-100])
    found = examine_default_model()
    assert found.facts["missing"] == found.facts["files"] == [UNET]  # the first use fetches it
    blob.write_bytes(bytes(len(whole)))
    found = examine_default_model()
    assert found.state == "problem"
    assert "damaged or cut short" in found.text
    assert f"delete {blob}" in found.text


def test_without_a_hub_the_built_in_model_is_named(hub, monkeypatch):
    hub.stop()
    gone = examine_default_model()
    assert (gone.state, "is not cached" in gone.text) == ("note", True)
    assert "built-in model" in gone.remedy
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    forbidden = examine_default_model()
    assert (forbidden.state, "HF_HUB_OFFLINE" in forbidden.text) == ("note", True)


def test_offline_asks_nobody(hub, published):
    hub.add(DEFAULT, published)
    assert examine_default_model(offline=True).state == "note"
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "state", "word"),
    [
        ("emoji", "ok", "complete"),
        ("emojy", "problem", "emoji"),
        ("./nowhere", "problem", "does not exist"),
        ("nobody/nothing", "problem", "nobody/nothing"),
    ],
)
def test_the_model_that_the_environment_names(hub, monkeypatch, name, state, word):
    monkeypatch.setenv("SDPIPE_MODEL", name)
    found = examine_default_model()
    assert found.state == state
    assert word in found.text


def test_other_models_in_the_cache(hub, published):
    hub.add("a/one", published)
    other = hub.add("b/two", published)
    other.files["README.md"] = b"so that it is another commit"
    hub.add("c/three", {"model_index.json": b'{"_class_name": "FluxPipeline"}'})
    find_model("a/one")
    find_model(f"b/two@{other.commit}")
    names = [finding.facts.get("model") for finding in examine_cache()]
    assert names == [None, "a/one", f"b/two@{other.commit}"]


def test_outputs_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert examine_outputs().state == "ok"
    Path("outputs").write_text("a file")
    found = examine_outputs()
    assert (found.state, "not a folder" in found.text) == ("problem", True)


def test_the_recorded_size_of_v1_4_is_that_of_its_configurations():
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    at = Path(__file__).parent / "support" / "v1_4"
    unet, vae = (json.loads((at / part / "config.json").read_text()) for part in ("unet", "vae"))
    with torch.device("meta"):
        networks = (
            UNet2DConditionModel.from_config(unet),
            AutoencoderKL.from_config(vae),
            CLIPTextModel(CLIPTextConfig.from_pretrained(at / "text_encoder")),
        )
    count = sum(parameter.numel() for network in networks for parameter in network.parameters())
    assert 2 * count == V1_4_BYTES


def test_the_memory_is_that_of_this_machine():
    found = examine_memory()
    assert 0 < found.facts["free"] < 2**50
    assert (found.state == "ok") == (found.facts["free"] >= 3 * 10**9)
