"""Checks the installation: packages, devices, models, memory, and an image drawn for trial.

Nothing is downloaded. A broken package is a finding and not the end: no library is imported at the
top, and what may crash runs in another process. `python -m sdpipe.doctor` needs no typer.

This file has more than 300 lines: its subjects are small, share `Finding` and nothing else, and
one file is easier to follow than a room of five when an installation is broken.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import sdpipe
from sdpipe.errors import SdpipeError, UsageError
from sdpipe.io import names
from sdpipe.loading.compatibility import check_parts
from sdpipe.loading.hub import files_to_download, is_hub_id, missing_files
from sdpipe.loading.layout import select_model
from sdpipe.loading.locate import BUILT_IN, DEFAULT, chosen_model
from sdpipe.loading.sources import Sources

V1_4_BYTES = 2 * (859_520_964 + 83_653_863 + 123_060_480)  # the UNet, VAE and text encoder in fp16
V1_4_MEMORY = 3_000_000_000  # bytes, to draw in 16 bits; see benchmarks/v1_4_folder.py
THUMBNAIL = bytes.fromhex("fbf0f67d7e84cec4c4f3808bd70413e75462f0b1bdd53842e4acb9")
"""The RGB means of 3 x 3 parts of the trial's image in float32; in 16 bits they are off by 1."""
TOLERANCE = 8
REFETCH = "the next use online fetches what is missing"
GPU_REMEDY = "use --device cpu, or free the GPU's memory, update its driver, or fit torch to it"


@dataclass(frozen=True)
class Finding:
    """One thing that was examined: a subject of a word or two, and what was found.

    state: a "note" is worth knowing, though images can be drawn; a "problem" prevents that.
    remedy: what helps, "" if nothing has to. facts: the same for a program, as plain JSON types.
    """

    subject: str
    state: Literal["ok", "note", "problem"]
    text: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        remedy = f" -> {self.remedy}" if self.remedy else ""
        return f"{self.state:<7}  {self.subject:<15}  {' '.join(self.text.split())}{remedy}"


def examine(*, offline: bool = False) -> Iterator[Finding]:
    """Examines everything that drawing needs. Nearly all the time goes into importing torch.

    offline: do not ask the hub, not even for the size of a model that is not cached.
    """
    yield from examine_packages()
    built_in = examine_built_in_model()
    yield from smoke_test(draw=built_in.state == "ok")
    yield built_in
    yield examine_default_model(offline=offline)
    yield from examine_cache()
    yield examine_memory()
    yield examine_outputs()


def is_working(findings: Iterable[Finding]) -> bool:
    """Whether nothing keeps images from being drawn."""
    return all(finding.state != "problem" for finding in findings)


def examine_packages() -> Iterator[Finding]:
    """Python, sdpipe, its requirements, and packages that need another version of one of these.

    Reads the records of installed packages and imports none.
    """
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", "ok", f"{system}, {sys.executable}")
    yield Finding("sdpipe", "ok", f"{sdpipe.__version__} in {Path(sdpipe.__file__).parent}")
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name

        needs = [Requirement(line) for line in metadata.requires("sdpipe") or []]
    except (metadata.PackageNotFoundError, ImportError) as error:
        yield Finding("packages", "problem", str(error), "install sdpipe and packaging again")
        return
    needs = [need for need in needs if "test" not in str(need.marker)]
    versions = {canonicalize_name(need.name): _version(need.name) for need in needs}
    for need in needs:
        found, optional = _version(need.name), need.marker is not None
        facts = {"version": found, "required": str(need.specifier)}
        remedy = f'pip install "{need.name}{need.specifier}"'
        if found is None:
            text = f"is not installed{'; drawing does not need it' * optional}"
            yield Finding(need.name, "note" if optional else "problem", text, remedy, facts)
        elif not need.specifier.contains(found, prereleases=True):
            text = f"{found} is outside the supported versions, {need.specifier}"
            yield Finding(need.name, "note", text, remedy, facts)
        else:
            yield Finding(need.name, "ok", found, facts=facts)
    first = {package.name: package for package in reversed(list(metadata.distributions()))}
    for package in first.values():
        for need in map(Requirement, package.requires or []):
            found = versions.get(canonicalize_name(need.name))
            applies = need.marker is None or need.marker.evaluate({"extra": ""})
            if found and applies and not need.specifier.contains(found, prereleases=True):
                text = f"{package.version} needs {need.name}{need.specifier}; {found} is installed"
                remedy = f"upgrade {package.name}, or uninstall it if nothing needs it"
                yield Finding(package.name, "note", text, remedy)


def _version(name: str) -> str | None:
    """The version of an installed package; None where it is missing or its record is damaged."""
    with contextlib.suppress(metadata.PackageNotFoundError, KeyError):
        return metadata.version(name) or None
    return None


def examine_built_in_model() -> Finding:
    """Whether the model in the package can be read."""
    name = BUILT_IN[0]
    try:
        return Finding(f"model {name}", "ok", f"built in, {_describe_model(name)}")
    except Exception as error:
        text = f"cannot be read: {_describe_error(error)}"
        return Finding(f"model {name}", "problem", text, "install sdpipe again")


def examine_default_model(*, offline: bool = False) -> Finding:
    """The model that draws without --model, or what has to be fetched for it.

    offline: do not ask the hub.
    """
    asked = chosen_model()
    name, label = asked or DEFAULT, f"SDPIPE_MODEL={asked!r}" if asked else DEFAULT
    on_hub = is_hub_id(name) and name not in BUILT_IN and not os.path.exists(name)
    try:
        missing = missing_files(name, select_model) if on_hub else []
        if missing == []:
            return Finding("default model", "ok", f"{label}, {_describe_model(name)}")
    except Exception as error:  # the model is here and damaged, so no other one takes its place
        return Finding("default model", "problem", _describe_error(error))
    from huggingface_hub import constants

    state: Literal["note", "problem"] = "problem" if asked and not offline else "note"
    remedy = "" if asked else "until then the built-in model draws where no --model is given"
    text = f"{name}, {'not cached' if missing is None else _describe_missing(missing)}"
    facts: dict[str, Any] = {"model": name, "missing": missing}
    if offline or constants.is_offline_mode():
        size = f"; its weights are {_megabytes(V1_4_BYTES)}" if name == DEFAULT else ""
        why = "--offline" if offline else "HF_HUB_OFFLINE"
        return Finding("default model", state, f"{text}{size} ({why})", remedy, facts)
    try:
        sizes = files_to_download(name, select_model)
    except SdpipeError as error:
        return Finding("default model", state, str(error), remedy, facts)
    todo = sizes if missing is None else {n: sizes[n] for n in missing if n in sizes}
    facts |= {"bytes": sum(size or 0 for size in todo.values()), "files": sorted(todo)}
    text += f"; the first use fetches {len(todo)} files, {_megabytes(facts['bytes'])}"
    return Finding("default model", "ok", text, facts=facts)


def examine_cache() -> Iterator[Finding]:
    """The models in the hub's cache that sdpipe can draw with, complete or not."""
    try:
        from huggingface_hub import CacheNotFound, constants, scan_cache_dir
    except Exception as error:
        yield Finding("cache", "problem", _describe_error(error), "install huggingface_hub again")
        return
    folder, names = Path(constants.HF_HUB_CACHE), []
    with contextlib.suppress(CacheNotFound):
        cache = scan_cache_dir(folder)
        for damage in cache.warnings:
            yield Finding("cache", "note", str(damage), REFETCH)
        for repo in sorted(cache.repos, key=lambda repo: repo.repo_id):
            for revision in sorted(repo.revisions, key=lambda revision: revision.commit_hash):
                with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                    index = (revision.snapshot_path / "model_index.json").read_bytes()
                    if json.loads(index)["_class_name"] == "StableDiffusionPipeline":
                        at = "" if "main" in revision.refs else f"@{revision.commit_hash}"
                        names.append(f"{repo.repo_id}{at}")
    text = f"{folder}, models for sdpipe: {len(names)}, {_megabytes(_free_space(folder))} free"
    yield Finding("cache", "ok", text, facts={"folder": str(folder), "models": len(names)})
    for name in names:
        missing = missing_files(name, select_model)
        facts: dict[str, Any] = {"model": name, "missing": missing}
        remedy = REFETCH if missing else ""
        try:
            text = f"{name}, {_describe_missing(missing) if missing else _describe_model(name)}"
        except Exception as error:
            text, remedy = _describe_error(error), REFETCH
        yield Finding("cached model", "note" if remedy else "ok", text, remedy, facts)


def _describe_model(name: str) -> str:
    """Reads every configuration and header of a local model: "complete, 2133 MB, fp16".

    Raises:
        ModelError: what is wrong with it.
    """
    sources = Sources.find(name, {}, full_precision=False)
    check_parts(sources)
    sources.defaults()
    sources.scheduler()
    model = sources.model
    assert model is not None
    if model.is_file:
        return f"{_megabytes(model.path.stat().st_size)} in {model.path}"
    paths = [model.path / n for n in model.files.names]
    variant = ", fp16" if "fp16" in model.files.variants.values() else ""
    return f"complete, {_megabytes(sum(path.stat().st_size for path in paths))}{variant}"


def _describe_missing(missing: list[str]) -> str:
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return f"cached only in part, without {', '.join(missing[:3])}{more}"


def _describe_error(error: BaseException) -> str:
    return str(error) if isinstance(error, SdpipeError) else f"{type(error).__name__}: {error}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def examine_memory() -> Finding:
    """The memory that is free, of the machine or of the container that this runs in."""
    try:
        import psutil

        free = psutil.virtual_memory().available
    except Exception as error:
        return Finding("memory", "note", _describe_error(error), "install psutil again")
    with contextlib.suppress(OSError, ValueError):
        free = min(free, int(_control_group("memory.max")) - int(_control_group("memory.current")))
    text, facts = f"{_megabytes(free)} free", {"free": free}
    if free >= V1_4_MEMORY:
        return Finding("memory", "ok", text, facts=facts)
    text += f"; v1-4 takes about {_megabytes(V1_4_MEMORY)} in 16 bits"
    return Finding("memory", "note", text, "close other programs before using v1-4", facts)


def _control_group(name: str) -> str:
    """A limit of the container that this runs in: version 2 of Linux's control groups."""
    return Path("/sys/fs/cgroup", name).read_text(encoding="utf-8").strip()


def examine_outputs() -> Finding:
    """Whether images can be written where they go without --out."""
    folder = Path("outputs").absolute()
    try:
        names.Destination("outputs", 1)
    except UsageError as error:
        return Finding("outputs", "problem", str(error), "write elsewhere with --out FOLDER")
    text = f"{folder} can be written, {_megabytes(_free_space(folder))} free"
    return Finding("outputs", "ok", text, facts={"folder": str(folder)})


def _free_space(folder: Path) -> int:
    """The bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(next(f for f in (folder, *folder.parents) if f.exists())).free


def run_trial(device: str) -> list[Finding]:
    """Runs `trial` in another process. The last finding is its result, also where it crashed."""
    # It finds the same modules as this process, and downloads nothing.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = f"from sdpipe import doctor; doctor.print_trial({device!r})"
    command = [sys.executable, "-P", "-X", "faulthandler", "-c", code]
    ended = subprocess.run(command, capture_output=True, env=environment)
    output, errors = (data.decode(errors="replace") for data in (ended.stdout, ended.stderr))
    lines = [line for line in output.splitlines() if line.startswith('{"subject": ')]
    findings = [Finding(**json.loads(line)) for line in lines]
    if not findings or findings[-1].subject != "trial":
        status = ended.returncode
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        trace = [line.strip() for line in errors.splitlines() if line.startswith("  File ")]
        text = ", at ".join([f"the process ended with {how}", *trace[:1]])
        remedy = "reinstall torch and the package named there, as built for this system"
        findings.append(Finding("trial", "problem", text, remedy, {"status": status}))
    return findings


def smoke_test(
    *, draw: bool = True, run: Callable[[str], list[Finding]] = run_trial
) -> Iterator[Finding]:
    """What torch finds on this machine, and whether the expected image comes out.

    draw: False imports everything and draws nothing. run: how to run `trial` on a device.
    """
    findings = run("auto" if draw else "none")
    yield from findings
    device = next((f.facts["device"] for f in findings if f.subject == "device, dtype"), "cpu")
    if findings[-1].state == "problem" and device != "cpu":
        yield replace(run("cpu")[-1], subject="trial on cpu")


def trial(device: str, model: str = BUILT_IN[0]) -> Iterator[Finding]:
    """Imports all libraries and draws an image on `device`, or none if that is "none".

    A failure is the last finding.
    """
    stage, remedy = "importing torch", ""
    try:
        yield from _examine_devices()
        stage = "importing diffusers and transformers"
        from sdpipe.pipeline import Pipeline
        from sdpipe.runtime.device import dtype_name, pick_device, pick_dtype

        stage = "choosing device and dtype"
        place = pick_device("auto" if device == "none" else device)
        dtype = dtype_name(pick_dtype("auto", place))
        facts: dict[str, Any] = {"device": str(place), "dtype": dtype}
        yield Finding("device, dtype", "ok", f"auto is {place} and {dtype}", facts=facts)
        if device == "none":
            yield Finding("trial", "note", "all libraries can be imported; nothing was drawn")
            return
        stage, remedy = f"drawing on {place}", GPU_REMEDY if place.type != "cpu" else ""
        pipe, started = Pipeline(model, device=device), time.monotonic()
        image = pipe.generate("red apple", seed=0, steps=2).images[0]
        facts["seconds"] = time.monotonic() - started
    except Exception as error:
        yield _failure(stage, error, remedy)
        return
    means = image.reduce(43).tobytes()
    facts["difference"] = max(abs(a - b) for a, b in zip(means, THUMBNAIL, strict=True))
    text = f"{model} drew 2 steps on {place} in {facts['seconds']:.1f} s"
    if facts["difference"] <= TOLERANCE:
        yield Finding("trial", "ok", text, facts=facts)
    else:
        text += f", but the image differs from the expected one by {facts['difference']} of 255"
        yield Finding("trial", "problem", text, remedy or "install torch again", facts)


def _examine_devices() -> Iterator[Finding]:
    """The devices that torch finds, and its threads."""
    import torch

    threads, usable = torch.get_num_threads(), os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # the container's share; "max" is no limit
        quota, period = map(int, _control_group("cpu.max").split())
        usable = min(usable, -(-quota // period))
    text = f"{torch.backends.cpu.get_cpu_capability()}, {threads} threads on {usable} processors"
    slow = threads > usable
    yield Finding("cpu", "note" if slow else "ok", text, f"set OMP_NUM_THREADS={usable}" * slow)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(gpus):
        try:
            kind, (free, total) = torch.cuda.get_device_properties(i), torch.cuda.mem_get_info(i)
            text = f"{kind.name}, {_megabytes(free)} of {_megabytes(total)} free"
            yield Finding(f"cuda:{i}", "ok", text)
        except Exception as error:  # a driver that does not fit, or no room for a context
            yield Finding(f"cuda:{i}", "note", _describe_error(error), GPU_REMEDY)
    if not gpus and (torch.version.cuda or os.path.exists("/proc/driver/nvidia/version")):
        text = f"torch is built for CUDA {torch.version.cuda} and finds no GPU or driver"
        yield Finding("cuda", "note", text, "if there is a GPU, see pytorch.org for what fits it")


def _failure(stage: str, error: BaseException, remedy: str) -> Finding:
    """A stage that failed: its first cause, the packages on the way to it, and what helps."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    packages = [name for name in dict.fromkeys(modules) if name not in sys.stdlib_module_names]
    text = f"{stage} failed: {_describe_error(error)} (in {' > '.join(packages)})"
    if isinstance(error, ModuleNotFoundError) and error.name:
        remedy = f"pip install {error.name.partition('.')[0]}"
    elif not remedy and not isinstance(error, SdpipeError):
        remedy = "reinstall the packages named last, or uninstall those that sdpipe does not need"
    return Finding("trial", "problem", text, remedy, {"stage": stage, "packages": packages})


def print_trial(device: str) -> None:
    """Prints the findings of `trial` as JSON, a line each, for `run_trial`."""
    for finding in trial(device):
        print(f"\n{json.dumps(asdict(finding))}", flush=True)


if __name__ == "__main__":
    found = []
    for finding in examine(offline="--offline" in sys.argv):
        print(finding, flush=True)
        found.append(finding)
    sys.exit(not is_working(found))
