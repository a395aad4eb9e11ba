import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.errors import raises

from sdpipe.errors import UsageError
from sdpipe.runtime.device import (
    check_device,
    check_dtype,
    check_low_memory,
    dtype_name,
    pick_device,
    pick_dtype,
    pick_speed,
)

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """Pretends that the machine has this many GPUs, Metal or not, these features of its CPU."""

    def pretend(gpus=0, mps=False, **capabilities):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    return pretend


@pytest.mark.parametrize("name", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:7"])
def test_known_devices_pass(name):
    check_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cpu ", None, 0])
def test_unknown_devices_are_refused(name):
    with raises(UsageError, value=f"device={name!r}", remedy="auto, cpu, mps, cuda, cuda:N"):
        check_device(name)


@pytest.mark.parametrize("name", ["fp16", "float64", "", "half", None, 16])
def test_unknown_dtypes_are_refused(name):
    with raises(UsageError, value=f"dtype={name!r}", remedy="float32, float16, bfloat16"):
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
    with raises(UsageError, value="device='meta'"):
        pick_device(torch.device("meta"))


@pytest.mark.parametrize("name", ["cuda", "cuda:0", torch.device("cuda")])
@pytest.mark.parametrize(
    ("built_for", "rule", "remedy"),
    [
        (None, "this torch was built without", "install a torch with CUDA"),
        ("13.0", "torch (for CUDA 13.0) finds none", "repair the driver"),
    ],
)
def test_cuda_on_a_machine_without_it(machine, monkeypatch, name, built_for, rule, remedy):
    machine()
    monkeypatch.setattr(torch.version, "cuda", built_for)
    with raises(UsageError, value="device='cuda", rule=rule, remedy=remedy):
        pick_device(name)


def test_a_gpu_that_this_machine_does_not_have(machine):
    machine(gpus=2)
    with raises(UsageError, value="device='cuda:7'", remedy="one of cuda:0, cuda:1, cpu, or auto"):
        pick_device("cuda:7")


@pytest.mark.parametrize(("gpus", "remedy"), [(1, "use cuda, cpu or auto"), (0, "use cpu or auto")])
def test_mps_on_a_machine_without_it(machine, gpus, remedy):
    machine(gpus=gpus)
    with raises(UsageError, value="device='mps'", rule="needs a Mac", remedy=remedy):
        pick_device("mps")


def test_low_memory_is_for_gpus(machine):
    machine(gpus=1)
    assert check_low_memory("cuda") == torch.device("cuda")
    with raises(UsageError, value="low_memory=True", rule="device cpu", remedy="device cuda"):
        check_low_memory("cpu")


def test_speed():
    assert pick_speed(True, False) == "default"
    assert pick_speed(True, True) == "compiled"
    assert pick_speed(False, False) == "plain"
    assert pick_speed(True, False, low_memory=True) == "default"
    with raises(UsageError, value="compile=True", rule="speed=False", remedy="leave one"):
        pick_speed(False, True)
    with raises(UsageError, value="compile=True", rule="low_memory=True", remedy="leave one"):
        pick_speed(True, True, low_memory=True)


@pytest.mark.parametrize(
    ("device", "features", "expected"),
    [
        ("cuda", {}, torch.float16),
        ("mps", {}, torch.float16),
        ("cpu", {"amx_bf16": True}, torch.bfloat16),
        ("cpu", {"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ("cpu", {}, torch.float32),
    ],
)
def test_auto_takes_the_fastest_dtype(machine, device, features, expected):
    machine(**features)
    assert pick_dtype("auto", torch.device(device)) is expected


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags : fpu avx2 amx_bf16 avx512f\n", torch.bfloat16),
        ("flags : fpu avx512_bf16\n", torch.bfloat16),
        ("flags : fpu avx2 avx512f\n", torch.float32),
        (None, torch.float32),
    ],
)
def test_where_torch_does_not_know_the_cpu_linux_does(monkeypatch, cpuinfo, expected):
    def read_text(path, encoding):
        if cpuinfo is None:
            raise FileNotFoundError(path)
        assert str(path) == "/proc/cpuinfo"
        return cpuinfo

    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert pick_dtype("auto", CPU) is expected


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="needs a newer torch")
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_torch_and_linux_agree_on_this_cpu(monkeypatch):
    told_by_torch = pick_dtype("auto", CPU)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert pick_dtype("auto", CPU) is told_by_torch


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_dtypes_by_name_and_as_objects(name):
    assert pick_dtype(name, CPU) is getattr(torch, name)
    assert pick_dtype(getattr(torch, name), CPU) is getattr(torch, name)
    assert dtype_name(getattr(torch, name)) == dtype_name(name) == name


def test_a_dtype_that_no_model_runs_in():
    with raises(UsageError, value="dtype='float64'"):
        pick_dtype(torch.float64, CPU)
