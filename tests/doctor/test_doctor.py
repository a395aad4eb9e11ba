import base64
import contextlib
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.hub_server import Hub
from support.tiny import tiny_model

import sdpipe.components
from sdpipe.cli.app import main
from sdpipe.doctor import models
from sdpipe.doctor.machine import outputs
from sdpipe.doctor.models import V1_4_BYTES, built_in, cached_models, default_model
from sdpipe.doctor.packages import packages
from sdpipe.loading import locate
from sdpipe.loading.locate import DEFAULT, find_model

trial = importlib.import_module("sdpipe.doctor.trial")  # its function has the same name
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
    own = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "home")}
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(
        command, cwd=cwd, env={**kept, **own}, capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stdout, ended.stderr


def about(findings, name):
    (found,) = [finding for finding in findings if finding.about == name]
    return found


def test_all_is_well_here(tmp_path):
    status, out, err = doctor(tmp_path, tmp_path, "doctor", "--json", module="sdpipe")
    told = json.loads(out)
    by_name = {finding["about"]: finding for finding in told["findings"]}
    assert (status, told["works"]) == (0, True), out
    assert err == ""
    assert by_name["trial"]["facts"]["seconds"] > 0
    assert by_name["torch"]["facts"]["version"].startswith("2.")
    assert by_name["device, dtype"]["facts"]["dtype"] in ("float32", "float16", "bfloat16")
    assert by_name["default model"]["state"] == "note"
    assert "the built-in model draws" in by_name["default model"]["remedy"]
    assert by_name["outputs"]["facts"]["folder"] == str(tmp_path / "outputs")
    assert not (tmp_path / "outputs").exists()


# What really happens when torchvision was built for another torch: importing it raises this, and
# transformers then says: Could not import module 'PreTrainedModel'.
def test_a_stranger_that_breaks_the_imports_is_found(tmp_path):
    code = 'raise RuntimeError("operator torchvision::nms does not exist")'
    install(tmp_path / "first", "torchvision", "0.19.0", "torch==2.4.0", code=code)
    status, out, _ = doctor(tmp_path / "first", tmp_path, "--offline")
    assert status == 1
    (trial,) = [line for line in out.splitlines() if " trial " in line]
    assert trial.startswith("problem")
    assert "operator torchvision::nms does not exist" in trial
    assert "pip uninstall torchvision, which sdpipe does not need" in trial
    (note,) = [line for line in out.splitlines() if line.startswith("note     torchvision")]
    assert "asks for torch==2.4.0" in note


def test_a_damaged_torch_is_found_and_all_else_is_still_told(tmp_path):
    code = 'raise OSError("libtorch_cpu.so: cannot open shared object file")'
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(code)
    status, out, err = doctor(tmp_path, tmp_path, "doctor", module="sdpipe")
    assert (status, err) == (1, "")
    (trial,) = [line for line in out.splitlines() if " trial " in line]
    assert "importing torch failed: OSError: libtorch_cpu.so" in trial
    assert "pip install --force-reinstall torch" in trial
    assert "ok       model emoji" in out
    assert "ok       outputs" in out


def oom(*_):
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.79 GiB"
    )


def no_kernel(*_):
    raise torch.AcceleratorError("CUDA error: no kernel image is available for execution")


class Aborted(BaseException):
    """In place of the end of the process, which the tests would share."""


def abort(*_):
    raise Aborted


@pytest.fixture
def gpu(monkeypatch, capsys):
    """A machine whose one GPU does what it is given for every model that is brought to it."""

    def make(fails, *, cpu=None, properties=None):
        kind = SimpleNamespace(name="NVIDIA Test", major=8, minor=6)
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
        monkeypatch.setattr("torch.cuda.get_device_properties", properties or (lambda i: kind))
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda i: (5 * 10**8, 8 * 10**9))
        build = sdpipe.components.build

        def built(sources, device, dtype, *more, **options):
            failure = fails if device.type == "cuda" else cpu
            if failure is not None:
                return failure()
            return build(sources, device, dtype, *more, **options)

        monkeypatch.setattr("sdpipe.components.build", built)

        def run(device):
            capsys.readouterr()
            with contextlib.suppress(Aborted):
                trial.child(device)
                return trial._Ended(trial._read(capsys.readouterr().out), 0)
            return trial._Ended(trial._read(capsys.readouterr().out), -signal.SIGABRT)

        monkeypatch.setattr(trial, "_run", run)  # the same in this process, without another's start
        return list(trial.trial(draw=True))

    return make


@pytest.mark.parametrize(
    ("fails", "why", "remedy"),
    [
        (oom, "failed: OutOfMemoryError: CUDA out of memory. Tried to", "nvidia-smi lists"),
        (no_kernel, "failed: AcceleratorError: CUDA error: no kernel", "see pytorch.org"),
        (abort, "ended the process with SIGABRT", "update its driver"),
    ],
)
def test_where_the_gpu_fails_the_cpu_is_tried(gpu, fails, why, remedy):
    found = gpu(fails)
    assert about(found, "cuda:0").text.startswith("NVIDIA Test, 8.0 GB, 500.0 MB free")
    assert about(found, "device, dtype").facts["device"] == "cuda"
    last = about(found, "trial")
    assert last.state == "problem"  # without --device, nothing is drawn
    assert last.text.startswith(f"drawing with the built-in model on cuda {why}")
    assert "; the CPU drew its 2 steps in " in last.text
    assert last.facts["cpu"]["seconds"] > 0
    assert last.remedy.startswith("--device cpu draws; for the GPU ")
    assert remedy in last.remedy
    assert "--force-reinstall" not in last.remedy


def test_where_the_cpu_fails_too_it_is_no_remedy(gpu):
    def no_memory():
        raise MemoryError("cannot allocate")

    on_gpu, on_cpu = [each for each in gpu(oom, cpu=no_memory) if each.about == "trial"]
    assert "--device cpu" not in on_gpu.remedy + on_cpu.remedy
    assert "MemoryError: cannot allocate" in on_cpu.text


def test_a_gpu_that_the_driver_does_not_open(gpu):
    def closed(_):
        raise torch.AcceleratorError("CUDA error: system has unsupported display driver")

    found = gpu(no_kernel, properties=closed)
    assert about(found, "cuda:0").state == "note"
    assert "cannot be used: AcceleratorError: CUDA error: system" in about(found, "cuda:0").text
    assert "the CPU drew" in about(found, "trial").text


def test_a_library_that_crashes_does_not_take_the_doctor_with_it(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import os\nos.abort()")
    status, out, _ = doctor(tmp_path, tmp_path, "--offline")
    assert status == 1
    (trial,) = [line for line in out.splitlines() if " trial " in line]
    assert "importing torch ended the process with SIGABRT" in trial
    assert str(tmp_path / "torch" / "__init__.py") in trial
    assert "ok       outputs" in out


def test_typer_is_not_needed_to_hear_that_it_is_missing(tmp_path):
    (tmp_path / "typer").mkdir()
    (tmp_path / "typer" / "__init__.py").write_text("raise ImportError")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError")  # not waited for here
    assert doctor(tmp_path, tmp_path, "--help", module="sdpipe")[0] == 1
    _, out, err = doctor(tmp_path, tmp_path, "--offline")
    assert err == ""
    assert "ok       outputs" in out


def test_another_version_than_was_asked_for(tmp_path, monkeypatch):
    install(tmp_path, "transformers", "5.1.0")
    install(tmp_path, "xformers", "0.0.28", "torch==2.5.0", 'numpy; extra == "more"')
    install(tmp_path, "torchao", "0.9", "torch>=2.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = list(packages())
    old = about(found, "transformers")
    assert (old.state, old.facts["version"]) == ("note", "5.1.0")
    assert 'pip install "transformers<6,>=5.23"' in old.remedy
    assert "asks for torch==2.5.0" in about(found, "xformers").text
    assert "sdpipe does not need" in about(found, "xformers").remedy
    assert not [finding for finding in found if finding.about == "torchao"]


def test_what_is_missing(tmp_path, monkeypatch):
    for name in ("torch", "diffusers"):
        install(tmp_path, name, "99.0" if name == "diffusers" else "2.9.1+cu128")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # of packaging, the modules are loaded
    found = list(packages())
    scipy = about(found, "scipy")
    assert (scipy.state, scipy.remedy) == ("problem", 'pip install "scipy>=1.13"')
    assert about(found, "torch").state == "ok"
    assert about(found, "diffusers").state == "note"
    assert about(found, "matplotlib").state == "note"
    assert "sdpipe show" in about(found, "matplotlib").text


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        yield hub


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("published"))


def default(*, offline=False):
    (found,) = default_model(offline=offline)
    return found


def test_what_would_be_fetched_is_asked_and_not_fetched(hub, published, tmp_path):
    repo = hub.add(DEFAULT, published)
    repo.files["v1-4.ckpt"] = b"pickle" * 1000
    found = default()
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
    assert (default().state, default(offline=True).state) == ("ok", "ok")
    cache, model = cached_models()
    assert (cache.facts["models"], model.state, model.facts["model"]) == (1, "ok", DEFAULT)
    assert "whole" in model.text
    assert hub.requests == []


def test_a_blob_that_is_missing(hub, published):
    hub.add(DEFAULT, published)
    folder = find_model().path
    (folder / UNET).resolve().unlink()
    hub.requests.clear()
    found = default()
    assert (found.state, found.facts["missing"]) == ("ok", [UNET])
    assert found.facts["bytes"] == len(hub.repos[DEFAULT].files[UNET])
    assert hub.fetched() == []
    hub.stop()
    assert default().state == "note"
    _, model = cached_models()
    assert (model.state, model.facts["missing"]) == ("note", [UNET])
    assert UNET in model.text


def test_weights_that_were_cut_short(hub, published):
    hub.add(DEFAULT, published)
    blob = (find_model().path / UNET).resolve()
    blob.write_bytes(blob.read_bytes()[:-100])
    found = default()
    assert found.state == "problem"
    assert "damaged or cut short" in found.text
    assert "Delete it" in found.text


def test_without_a_hub_the_built_in_model_is_named(hub, monkeypatch):
    hub.stop()
    gone = default()
    assert (gone.state, "is not cached" in gone.text) == ("note", True)
    assert "built-in model" in gone.remedy
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    forbidden = default()
    assert (forbidden.state, "HF_HUB_OFFLINE" in forbidden.text) == ("note", True)


def test_offline_asks_nobody(hub, published):
    hub.add(DEFAULT, published)
    assert default(offline=True).state == "note"
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "state", "word"),
    [
        ("emoji", "ok", "built-in"),
        ("emojy", "problem", "Did you mean emoji?"),
        ("./nowhere", "problem", "does not exist"),
        ("nobody/nothing", "problem", "nobody/nothing"),
    ],
)
def test_the_model_that_the_environment_names(hub, monkeypatch, name, state, word):
    monkeypatch.setenv("SDPIPE_MODEL", name)
    found = default()
    assert found.state == state
    assert word in found.text


def test_other_models_in_the_cache(hub, published):
    hub.add("a/one", published)
    other = hub.add("b/two", published)
    other.files["README.md"] = b"so that it is another commit"
    hub.add("c/three", {"model_index.json": b'{"_class_name": "FluxPipeline"}'})
    find_model("a/one")
    find_model(f"b/two@{other.commit}")
    names = [finding.facts.get("model") for finding in cached_models()]
    assert names == [None, "a/one", f"b/two@{other.commit}"]


def test_a_built_in_model_that_was_changed(tmp_path, monkeypatch):
    root = tmp_path / "sdpipe" / "models"
    folder = tiny_model(root / "emoji")
    for place in (models, locate):
        monkeypatch.setattr(place, "BUILT_IN_FOLDER", root)
    lines = [
        f"{path.relative_to(tmp_path).as_posix()},sha256={_recorded(path)},{path.stat().st_size}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    install(tmp_path, "sdpipe", "0.1.0")
    (tmp_path / "sdpipe-0.1.0.dist-info" / "RECORD").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert built_in().state == "ok"
    weights = bytearray((folder / UNET).read_bytes())
    weights[-1] ^= 1  # the header still fits
    (folder / UNET).write_bytes(weights)
    found = built_in()
    assert (found.state, UNET in found.text) == ("problem", True)
    (folder / UNET).write_bytes(weights[:-9])
    assert "cut short" in built_in().text
    (folder / UNET).unlink()
    assert built_in().state == "problem"


def _recorded(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def test_outputs_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert outputs().state == "ok"
    Path("outputs").write_text("a file")
    found = outputs()
    assert (found.state, "not a folder" in found.text) == ("problem", True)


def test_the_recorded_size_of_v1_4_is_that_of_its_configurations():
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    at = Path(__file__).parents[1] / "support" / "v1_4"
    unet, vae = (json.loads((at / part / "config.json").read_text()) for part in ("unet", "vae"))
    with torch.device("meta"):
        networks = (
            UNet2DConditionModel.from_config(unet),
            AutoencoderKL.from_config(vae),
            CLIPTextModel(CLIPTextConfig.from_pretrained(at / "text_encoder")),
        )
    count = sum(parameter.numel() for network in networks for parameter in network.parameters())
    assert 2 * count == V1_4_BYTES


def test_the_help_names_both(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "compare" in out
    assert "doctor" in out
