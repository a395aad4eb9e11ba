"""Device, dtype and speed of a run: by name, or the best choice for this machine.

Names are checked without torch, so that a misspelt one is refused at once.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sdpipe.errors import UsageError

if TYPE_CHECKING:
    import torch

DEVICES = "auto, cpu, mps, cuda, cuda:N"
SPEEDS = ("plain", "default", "compiled")
"""How the networks run: as diffusers loads them, accelerated (see `speed`), or compiled as well."""
DTYPES = ("auto", "float32", "float16", "bfloat16")
_DEVICE = re.compile(r"auto|(cpu|mps)(:0)?|cuda(:\d+)?")


def check_device(name: str) -> None:
    """Checks the spelling of a device's name, not whether this machine has it.

    Raises:
        UsageError: the name is not one of `DEVICES`.
    """
    if not isinstance(name, str) or not _DEVICE.fullmatch(name):
        raise UsageError(f"device={name!r}", "is unknown", f"use one of {DEVICES}")


def check_dtype(name: str) -> None:
    """Checks the name of a dtype.

    Raises:
        UsageError: the name is not one of `DTYPES`.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise UsageError(f"dtype={name!r}", "is unknown", f"use one of {', '.join(DTYPES)}")


def pick_speed(speed: bool, compile: bool, low_memory: bool = False) -> str:
    """Picks one of `SPEEDS`.

    Raises:
        UsageError: compile together with speed=False or low_memory.
    """
    if compile and low_memory:
        raise UsageError(
            "compile=True",
            "keeps the U-Net on the GPU, and low_memory=True removes it between two images",
            "leave one of the two out",
        )
    if compile and not speed:
        raise UsageError(
            "compile=True",
            "makes the U-Net faster, and speed=False asks for the opposite",
            "leave one of the two out",
        )
    return "compiled" if compile else "default" if speed else "plain"


def pick_device(name: "str | torch.device" = "auto") -> "torch.device":
    """Picks a device by name; "auto" is cuda if there is one, else mps, else cpu.

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
    value = f"device={str(name)!r}"
    if device.type == "cuda" and not gpus and torch.version.cuda is None:
        raise UsageError(
            value,
            "needs CUDA, which this torch was built without",
            "install a torch with CUDA, or use auto",
        )
    if device.type == "cuda" and not gpus:
        raise UsageError(
            value,
            f"needs a GPU and its driver, and torch (for CUDA {torch.version.cuda}) finds none",
            "repair the driver, or use auto",
        )
    if device.type == "cuda" and (device.index or 0) >= gpus:
        available = [*(f"cuda:{i}" for i in range(gpus)), *(["mps"] if mps else []), "cpu"]
        raise UsageError(
            value, "is not on this machine", f"use one of {', '.join(available)}, or auto"
        )
    if device.type == "mps" and not mps:
        others = "cuda, cpu" if gpus else "cpu"
        raise UsageError(
            value,
            "needs a Mac with Apple's Metal and macOS 14 or newer",
            f"use {others} or auto",
        )
    return device


def check_low_memory(name: "str | torch.device") -> "torch.device":
    """Picks a device by name, and checks that it has memory of its own.

    Raises:
        UsageError: the name is unknown, or the device is not a GPU of this machine.
    """
    device = pick_device(name)
    if device.type != "cuda":
        raise UsageError(
            "low_memory=True",
            f"is for a GPU with memory of its own, which device {device} is not",
            "leave it out, or use device cuda",
        )
    return device


def pick_dtype(name: "str | torch.dtype", device: "torch.device") -> "torch.dtype":
    """Picks a dtype by name; "auto" is the fastest one that is exact enough on `device`.

    That is float16 on cuda and mps, bfloat16 on a CPU with native bfloat16 matrix products, and
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
    return torch.bfloat16 if _has_bfloat16_products() else torch.float32


def dtype_name(dtype: "str | torch.dtype") -> str:
    """The name of a dtype as `pick_dtype` reads it, such as "float16"; a name is returned as is."""
    return dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")


def _has_bfloat16_products() -> bool:
    """Whether this CPU has AMX or AVX512-BF16, which take a quarter of float32's time."""
    import torch

    features = ("amx_bf16", "avx512_bf16")
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in features)
    try:  # older versions of torch do not say, but Linux does, by the same names
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return not flags.isdisjoint(features)
