"""Where a run computes, and in which number type: by name, or the best that is here.

Nothing here imports torch until something has to be picked: a misspelt name is told at once.
"""

import re
from typing import TYPE_CHECKING

from sdpipe.errors import UsageError

if TYPE_CHECKING:
    import torch

DEVICES = "auto, cpu, mps, cuda, cuda:N"
SPEEDS = ("plain", "default", "compiled")
"""How the networks run: as diffusers loads them, as `speed.lay_out` lays them out, compiled too."""
DTYPES = ("auto", "float32", "float16", "bfloat16")
_DEVICE = re.compile(r"auto|(cpu|mps)(:0)?|cuda(:\d+)?")


def check_device(name: str) -> None:
    """Refuses a name that is no device, without asking whether the device is here.

    Raises:
        UsageError: the name is not one of `DEVICES`.
    """
    if not isinstance(name, str) or not _DEVICE.fullmatch(name):
        raise UsageError(f"device={name!r} is not known; the known ones are {DEVICES}.")


def check_dtype(name: str) -> None:
    """Refuses a name that is no number type a model can be loaded in.

    Raises:
        UsageError: the name is not one of `DTYPES`.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise UsageError(f"dtype={name!r} is not known; the known ones are {', '.join(DTYPES)}.")


def check_speed(speed: bool, compile: bool, low_memory: bool = False) -> str:
    """Which of `SPEEDS` was asked for.

    Raises:
        UsageError: to compile, but plainly, or what is not to stay on the device.
    """
    if compile and low_memory:
        raise UsageError(
            "compile=True keeps the U-Net on the GPU, and low_memory=True takes it away from there "
            "between two pictures; leave one of the two out."
        )
    if compile and not speed:
        raise UsageError(
            "compile=True is for speed, and speed=False is without; leave one of the two out."
        )
    return "compiled" if compile else "default" if speed else "plain"


def pick_device(name: "str | torch.device" = "auto") -> "torch.device":
    """The device of that name; auto is cuda where there is one, else mps, else cpu.

    Raises:
        UsageError: the name is unknown, or this machine has no such device.
    """
    check_device(name if isinstance(name, str) else str(name))
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if gpus else "mps" if mps else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        here = [*(f"cuda:{i}" for i in range(gpus)), *(["mps"] if mps else []), "cpu"]
        raise UsageError(
            f"device={str(name)!r} is not on this machine, whose devices are {', '.join(here)}; "
            + ("take one of those, or auto." if gpus else _no_cuda(torch.version.cuda))
        )
    if device.type == "mps" and not mps:
        others = "cuda or cpu" if gpus else "cpu"
        raise UsageError(
            f"device={str(name)!r} needs a Mac with Apple's Metal and macOS 14 or newer; "
            f"take {others}, or auto."
        )
    return device


def check_low_memory(name: "str | torch.device") -> "torch.device":
    """The device of that name, whose memory is another than the computer's own.

    Raises:
        UsageError: it is the same.
    """
    device = pick_device(name)
    if device.type != "cuda":
        raise UsageError(
            "low_memory=True keeps the model out of a GPU's memory while it does not work, and "
            f"device {device} has none of its own; leave it out, or take device cuda."
        )
    return device


def _no_cuda(built_for: str | None) -> str:
    if built_for is None:
        return "this torch was built without CUDA: install one with it, or take auto."
    return f"torch (for CUDA {built_for}) finds no GPU or driver: mend that, or take auto."


def pick_dtype(name: "str | torch.dtype", device: "torch.device") -> "torch.dtype":
    """The number type of that name; auto is the fastest one that is exact enough on `device`.

    That is float16 on cuda and mps, bfloat16 on a CPU that multiplies its matrices natively, and
    float32 on any other CPU.

    Raises:
        UsageError: the name is unknown.
    """
    text = dtype_name(name)
    check_dtype(text)
    import torch

    if text != "auto":
        return {
            "float32": torch.float32,
            "float16": torch.float16,
            "bfloat16": torch.bfloat16,
        }[text]
    if device.type in ("cuda", "mps"):
        return torch.float16
    return torch.bfloat16 if _multiplies_bfloat16() else torch.float32


def dtype_name(dtype: "str | torch.dtype") -> str:
    """The name of a number type as `pick_dtype` reads it: float16; that of a name is itself."""
    return dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has AMX or AVX512-BF16: a 1024 x 1024 product took a quarter of the time.

    torch asks the CPU in private functions, so they may go at any time; then the answer is no.
    """
    import torch

    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    tests = (getattr(torch.cpu, name, None) for name in names)
    return any(test is not None and test() for test in tests)
