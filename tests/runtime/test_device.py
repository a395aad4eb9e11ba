import subprocess
import sys

import pytest
import torch

from sdpipe.errors import UsageError
from sdpipe.runtime.device import check_device, check_dtype, dtype_name, pick_device, pick_dtype

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """Pretends that the machine has so many GPUs, Metal or not, native bfloat16 or not."""

    def pretend(gpus=0, mps=False, amx=False, avx512=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)

    return pretend


@pytest.mark.parametrize("name", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:7"])
def test_known_devices_pass(name):
    check_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cpu ", None, 0])
def test_unknown_devices_are_refused(name):
    with pytest.raises(UsageError, match=r"is not known; .*auto, cpu, mps, cuda, cuda:N"):
        check_device(name)


@pytest.mark.parametrize("name", ["fp16", "float64", "", "half", None, 16])
def test_unknown_dtypes_are_refused(name):
    with pytest.raises(UsageError, match=r"is not known; .*float32, float16, bfloat16"):
        check_dtype(name)


def test_checking_names_imports_no_torch():
    code = (
        "import sys, sdpipe.runtime.device as d\n"
        "d.check_device('cuda:3'); d.check_dtype('float16')\n"
        "for check in (d.check_device, d.check_dtype, d.pick_device):\n"
        "    try: check('nonsense')\n"
        "    except ValueError: pass\n"
        "    else: raise SystemExit('accepted')\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("gpus", "mps", "expected"),
    [(1, True, "cuda"), (2, False, "cuda"), (0, True, "mps"), (0, False, "cpu")],
)
def test_auto_takes_the_best_device(machine, gpus, mps, expected):
    machine(gpus=gpus, mps=mps)
    assert pick_device("auto") == torch.device(expected)


def test_devices_may_be_given_as_objects(machine):
    machine(gpus=2)
    assert pick_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert pick_device(CPU) == CPU
    with pytest.raises(UsageError, match="'meta' is not known"):
        pick_device(torch.device("meta"))


@pytest.mark.parametrize("name", ["cuda", "cuda:0", torch.device("cuda")])
def test_cuda_without_cuda(machine, name):
    machine()
    with pytest.raises(UsageError, match=r"device='cuda.*whose devices are cpu; .*take auto"):
        pick_device(name)


def test_a_gpu_that_is_not_there(machine):
    machine(gpus=1)
    with pytest.raises(UsageError, match=r"'cuda:7' is not on this .* are cuda:0, cpu; take one"):
        pick_device("cuda:7")


def test_mps_elsewhere(machine):
    machine(gpus=1)
    with pytest.raises(UsageError, match=r"'mps' needs a Mac .* take cuda or cpu, or auto"):
        pick_device("mps")


@pytest.mark.parametrize(
    ("device", "features", "expected"),
    [
        ("cuda", {}, torch.float16),
        ("mps", {}, torch.float16),
        ("cpu", {"amx": True}, torch.bfloat16),
        ("cpu", {"avx512": True}, torch.bfloat16),
        ("cpu", {}, torch.float32),
    ],
)
def test_auto_takes_the_fastest_dtype(machine, device, features, expected):
    machine(**features)
    assert pick_dtype("auto", torch.device(device)) is expected


def test_auto_without_torchs_private_tests_is_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert pick_dtype("auto", CPU) is torch.float32


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_dtypes_by_name_and_as_objects(name):
    assert pick_dtype(name, CPU) is getattr(torch, name)
    assert pick_dtype(getattr(torch, name), CPU) is getattr(torch, name)
    assert dtype_name(getattr(torch, name)) == dtype_name(name) == name


def test_a_dtype_that_no_model_runs_in():
    with pytest.raises(UsageError, match="'float64' is not known"):
        pick_dtype(torch.float64, CPU)
