"""A small picture, drawn for trial in another process: one that crashes takes nothing with it.

The process prints a line of JSON after each stage, so what it did not print is what broke. Where
it broke on a GPU, another process tries the CPU: after such an error the first one is good for
nothing.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from sdpipe.doctor.finding import Finding, size
from sdpipe.doctor.machine import processors
from sdpipe.doctor.packages import closure_of_sdpipe
from sdpipe.errors import SdpipeError

# The same modules are found as here: a folder that is first on the path stays the first.
_PROGRAM = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from sdpipe.doctor.trial import child; child(sys.argv[2])"
)
_MARK = "sdpipe tells: "

DRIVER = "update its driver, or install a torch that is built for it: see pytorch.org"
MEMORY = "close what else takes its memory, which nvidia-smi lists"

_STAGES = {
    "torch": "importing torch",
    "libraries": "importing diffusers and transformers",
    "scheduler": "making the scheduler lms",
    "device": "choosing device and dtype",
    "drawing": "drawing with the built-in model",
}


def trial(*, draw: bool) -> Iterator[Finding]:
    """What torch says of the machine, and whether a picture comes out.

    draw: without, everything is imported and nothing drawn.
    """
    ended = _run("auto" if draw else "")
    told = ended.told
    if "devices" in told:
        yield from _machine(told)
    stages = [name for name in _STAGES if draw or name != "drawing"]
    stage = next((name for name in stages if ended.failed(name)), None)
    if stage == "drawing" and told["device"]["device"] != "cpu":
        yield from _without_gpu(ended)
    elif stage is not None:
        yield _failure(stage, ended)
    elif draw:
        drawn = told["drawing"]
        text = f"the built-in model drew 2 steps in {drawn['seconds']:.1f} s"
        yield Finding("trial", "ok", text, facts=drawn)


@dataclass(frozen=True)
class _Ended:
    """What the process told, by stage; its exit status; where in Python it crashed, or ""."""

    told: Mapping[str, Any]
    status: int
    where: str = ""

    def failed(self, stage: str) -> bool:
        return stage not in self.told or "error" in self.told[stage]

    @property
    def how(self) -> str:
        """How it ended where it did not say so itself."""
        if self.status < 0:
            return f"ended the process with {signal.Signals(-self.status).name}"
        return f"ended the process with exit status {self.status}"


def _run(device: str) -> _Ended:
    """Runs the process; it draws on `device`, or on none where that is ""."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}  # a trial fetches nothing
    program = [sys.executable, "-X", "faulthandler", "-c", _PROGRAM]
    command = [*program, json.dumps(sys.path), device]
    with tempfile.TemporaryFile() as complaints:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=complaints, env=environment, check=False
        )
        complaints.seek(0)
        words = complaints.read().decode(errors="replace").splitlines()
    where = next((word.strip() for word in words if word.startswith('  File "')), "")
    return _Ended(_read(ended.stdout.decode(errors="replace")), ended.returncode, where)


def _read(printed: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for line in printed.splitlines():
        if line.startswith(_MARK):  # a library may print, too
            told.update(json.loads(line.removeprefix(_MARK)))
    return told


def _machine(told: Mapping[str, Any]) -> Iterator[Finding]:
    """The devices that torch has, what would be chosen of them, and its threads."""
    torch = told["torch"]
    for name, device in told["devices"].items():
        if "error" in device:
            yield Finding(name, "note", f"cannot be used: {device['error']}", DRIVER, device)
        else:
            yield Finding(name, "ok", device["text"], facts=device)
    if torch["cuda"] is None and os.path.exists("/proc/driver/nvidia/version"):
        text = "an NVIDIA driver is here, but this torch was built without CUDA and uses the CPU"
        yield Finding("cuda", "note", text, "install a torch built for CUDA: see pytorch.org")
    elif torch["cuda"] is not None and "cuda:0" not in told["devices"]:
        text = f"torch is built for CUDA {torch['cuda']} and finds no GPU or driver; the CPU draws"
        yield Finding("cuda", "note", text, "install or update the driver, if there is a GPU")
    if "error" not in told.get("device", {"error": ""}):
        chosen = told["device"]
        text = f"auto is {chosen['device']} and {chosen['dtype']}: {chosen['why']}"
        yield Finding("device, dtype", "ok", text, facts=chosen)
    threads, usable = torch["threads"], processors()
    facts = {"threads": threads, "processors": usable}
    if threads > usable:
        text = f"torch takes {threads} threads where {usable} processors may be used: slow"
        yield Finding("threads", "note", text, f"set OMP_NUM_THREADS={usable}", facts)
    else:
        yield Finding("threads", "ok", f"{threads} of {usable} processors", facts=facts)


def _without_gpu(ended: _Ended) -> Iterator[Finding]:
    """The GPU drew nothing: why, what helps, and whether the CPU does."""
    device, told = ended.told["device"]["device"], ended.told.get("drawing")
    why = ended.how if told is None else f"failed: {told['error']}"
    full = "out of memory" in why.lower() or "OutOfMemoryError" in why
    remedy = MEMORY if full else DRIVER
    text = f"drawing with the built-in model on {device} {why}"
    facts = {"stage": "drawing", "device": device, **(told or {"status": ended.status})}
    again = _run("cpu")
    stage = next((name for name in _STAGES if again.failed(name)), None)
    if stage is not None:
        yield Finding("trial", "problem", text, remedy, facts)
        yield _failure(stage, again)
        return
    seconds = again.told["drawing"]["seconds"]
    text += f"; the CPU drew its 2 steps in {seconds:.1f} s"
    facts["cpu"] = again.told["drawing"]
    yield Finding("trial", "problem", text, f"--device cpu draws; for the GPU {remedy}", facts)


def _failure(stage: str, ended: _Ended) -> Finding:
    if stage in ended.told:
        return _broken(stage, ended.told[stage])
    # A library and this processor or system do not fit.
    text = f"{_STAGES[stage]} {ended.how}{f', at {ended.where}' * bool(ended.where)}"
    remedy = "install torch and the package named there again, as built for this system"
    return Finding("trial", "problem", text, remedy, {"stage": stage, "status": ended.status})


def _broken(stage: str, told: Mapping[str, Any]) -> Finding:
    """What went wrong, whose fault it seems to be, and what helps against that package."""
    where, missing, text = told["package"], told["missing"], told["error"]
    facts = {"stage": stage, **told}
    said = f"{_STAGES[stage]} failed: {text}"
    if missing:
        return Finding("trial", "problem", said, f"pip install {missing}", facts)
    if where is None:
        return Finding("trial", "problem", said, "", facts)
    if told["needed"]:
        remedy = f"pip install --force-reinstall {where}"
    else:
        remedy = f"pip uninstall {where}, which sdpipe does not need, or install one that fits"
    return Finding("trial", "problem", f"{said} (in {where})", remedy, facts)


def child(device: str) -> None:
    """What the other process does; prints an object for each stage.

    device: what is drawn on; with "" nothing is.
    """
    for stage, work in (
        ("torch", _torch),
        ("libraries", _libraries),
        ("scheduler", _scheduler),
        ("device", _device),
        *([("drawing", lambda: _draw(device))] if device else []),
    ):
        try:
            told = work()
        except Exception as error:
            _tell({stage: _explained(error)})
            return
        if stage == "torch":
            _tell({"devices": told.pop("devices")})
        _tell({stage: told})


def _tell(told: Mapping[str, Any]) -> None:
    print(f"\n{_MARK}{json.dumps(told)}", flush=True)


def _torch() -> dict[str, Any]:
    import torch

    able = torch.backends.cpu.get_cpu_capability()
    devices = {"cpu": {"text": f"{able}, {processors()} processors"}}
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        try:
            kind = torch.cuda.get_device_properties(i)
            left, total = torch.cuda.mem_get_info(i)
        except Exception as error:  # a driver that does not fit, or no room for a context
            devices[f"cuda:{i}"] = {"error": f"{type(error).__name__}: {error}"}
            continue
        devices[f"cuda:{i}"] = {
            "text": f"{kind.name}, {size(total)}, {size(left)} free, capability {kind.major}."
            f"{kind.minor}",
        }
    if torch.backends.mps.is_available():
        devices["mps"] = {"text": "Apple's Metal"}
    return {"cuda": torch.version.cuda, "threads": torch.get_num_threads(), "devices": devices}


def _libraries() -> dict[str, Any]:
    import sdpipe.pipeline  # noqa: F401

    return {}


def _scheduler() -> dict[str, Any]:
    from sdpipe.loading.sources import V1_4_SCHEDULER
    from sdpipe.schedule import make_scheduler

    make_scheduler("lms", V1_4_SCHEDULER, 2)
    return {}


def _device() -> dict[str, Any]:
    import torch

    from sdpipe.runtime.device import dtype_name, pick_device, pick_dtype

    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    if device.type != "cpu":
        why = "the fastest type of such a device"
    elif dtype == torch.bfloat16:
        why = "this CPU multiplies matrices of bfloat16 natively (AMX or AVX512-BF16)"
    else:
        why = "this CPU has neither AMX nor AVX512-BF16, so bfloat16 would not be faster"
    return {"device": str(device), "dtype": dtype_name(dtype), "why": why}


def _draw(device: str) -> dict[str, Any]:
    import time

    from sdpipe.pipeline import Pipeline

    pipe = Pipeline("emoji", device=device)
    started = time.monotonic()
    pipe.generate("red apple", seed=0, steps=2)
    return {"seconds": time.monotonic() - started}


def _explained(error: BaseException) -> dict[str, Any]:
    """The first cause of an error, the package that raised it, and the module that was missing.

    Libraries wrap what went wrong at an import in errors that say less and less. Of the packages on
    the way to it, one that sdpipe can do without is suspected before all others.
    """
    while (cause := error.__cause__ or _context(error)) is not None:
        error = cause
    modules = []
    trace = error.__traceback__
    while trace is not None:
        modules.append(str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    homes, needed = metadata.packages_distributions(), closure_of_sdpipe()
    packages = [
        homes.get(module, [module])[0].lower()
        for module in reversed(modules)
        if module and module not in sys.stdlib_module_names and module != "sdpipe"
    ]
    strange = [package for package in packages if package not in needed]
    # An error of sdpipe's own names its remedy.
    where = None if isinstance(error, SdpipeError) else next(iter(strange or packages), None)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return {
        "error": f"{type(error).__name__}: {' '.join(str(error).split())}",
        "package": where,
        "needed": where in needed,
        "missing": missing.partition(".")[0] if missing else None,
    }


def _context(error: BaseException) -> BaseException | None:
    return None if error.__suppress_context__ else error.__context__
