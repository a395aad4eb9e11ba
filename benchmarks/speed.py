"""How fast sdpipe is, and how much memory it takes, beside diffusers' own pipeline.

    python benchmarks/speed.py [--only ROW ...] [--quick] [--list]

Both have the same weights and run in one process, in turn (A B B A A B ...), and what counts is
the ratio within a pair: its median and quartiles. Every row runs in a process of its own and goes
to speed.json beside this file as soon as it is done, and the table in README.md is written anew.
v1-4's weights are random here; they cost what the real ones cost. A row that this machine can't
run is not measured, and says why. Needs 7 GB of disk and 16 GB of memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from measure import (
    AVX512,
    FLOAT32,
    Measured,
    NotMeasured,
    Row,
    cpuinfo,
    entry,
    line,
    list_rows,
    read,
    save,
    write_table,
)

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).with_name("README.md")


def cpu(name: str, *arguments: Any, **options: Any) -> Callable[[Any], Measured]:
    """A function of speed_cpu.py, which is imported when it is called: torch takes its time."""
    return partial(_call, "speed_cpu", name, arguments, options)


def gpu(name: str, *arguments: Any, **options: Any) -> Callable[[Any], Measured]:
    """A function of speed_gpu.py."""
    return partial(_call, "speed_gpu", name, arguments, options)


def _call(
    module: str, name: str, arguments: tuple[Any, ...], options: dict[str, Any], bench: Any
) -> Measured:
    return getattr(import_module(module), name)(bench, *arguments, **options)


ROWS = {
    "step-float32": Row(
        "one guided step of v1-4, 512 x 512, against diffusers as it comes, in float32",
        cpu("step_against", "float32", 6),
        target=5,
        needs="bfloat16",
    ),
    "step-bfloat16": Row(
        "the same against diffusers set to bfloat16 by hand",
        cpu("step_against", "bfloat16", 10),
        target=1.3,
        needs="bfloat16",
    ),
    "step-openvino": Row(
        "the same against OpenVINO's UNet in diffusers' pipeline, bfloat16, static shapes",
        cpu("step_against", "bfloat16", 10, openvino=True),
        target=1,
        needs="bfloat16",
    ),
    "step-openvino-compile": Row(
        "the same, sdpipe with --compile",
        cpu("step_against", "bfloat16", 10, openvino=True, compile=True),
        target=1.2,
        needs="bfloat16",
    ),
    "step-compile": Row(
        "the same step with --compile against the default, from the second image on",
        cpu("step_compiled"),
        target=1.15,
        needs="bfloat16",
        anywhere=True,
    ),
    "host-time": Row(
        "what a step costs beside the UNet (a stub) and VAE, LMS, against diffusers' pipeline",
        cpu("host_time"),
        target=15,
    ),
    "coefficients": Row(
        "the coefficients of 50 steps of LMS against diffusers' (largest error: below 1e-14)",
        cpu("coefficients"),
        target=100,
    ),
    "help": Row(
        "`sdpipe --help` as a process against the imports of diffusers",
        cpu("command", "--help", status=0),
        target=20,
    ),
    "usage-error": Row(
        "`sdpipe generate x --steps 0` as a process against the same imports",
        cpu("command", "generate", "x", "--steps", "0", status=2),
        target=20,
    ),
    "first-step": Row(
        "a fresh process to the first step of the built-in model, against a diffusers script",
        cpu("first_step"),
        target=1.3,
    ),
    "load-fp16": Row(
        "most memory while v1-4's fp16 files are loaded, against that of the loaded weights",
        cpu("load_memory", half=True),
        target=1.15,
        figure="share",
    ),
    "load-float32": Row(
        "the same from float32 files",
        cpu("load_memory", half=False),
        target=1.15,
        figure="share",
    ),
    "batch": Row(
        "16 images of the built-in model in one call against 16 calls of sdpipe",
        cpu("batch"),
        target=2,
    ),
    "gpu-eager": Row(
        "prompt to image, 512 x 512, 50 steps of LMS, against diffusers as it comes, in float16",
        gpu("image_eager"),
        target=3,
        needs="cuda",
    ),
    "gpu-compiled": Row(
        "the same against diffusers compiled (UNet and VAE, max-autotune, channels last)",
        gpu("image_compiled"),
        target=1.15,
        needs="cuda",
    ),
    "gpu-graph": Row(
        "the same, default (a step is a CUDA graph) against speed=False",
        gpu("graph"),
        target=1.8,
        needs="cuda",
    ),
    "gpu-seconds": Row(
        "the same in seconds (the target is for an H200)",
        gpu("image_seconds"),
        target=0.4,
        figure="alone",
        needs="cuda",
    ),
    "gpu-synchronisations": Row(
        "how often the host waits for the GPU between the first step and the last",
        gpu("synchronisations"),
        target=0,
        figure="alone",
        needs="cuda",
    ),
    "gpu-memory": Row(
        "most GPU memory taken for one image, 512 x 512, float16, against diffusers",
        gpu("image_memory"),
        target=0.8,
        figure="share",
        needs="cuda",
    ),
    "gpu-low-memory": Row(
        "the same with --low-memory, in GB",
        gpu("low_memory"),
        target=2.2,
        figure="alone",
        needs="cuda",
    ),
    **{
        f"gpu-batch-{n}": Row(
            f"images a second, {n} in one call, beside diffusers",
            gpu("batch", n),
            target=None,
            figure="alone",
            needs="cuda",
        )
        for n in (1, 4, 16, 64)
    },
    "gpu-first-image": Row(
        "a fresh process to the first image in its file, against diffusers as it comes",
        gpu("first_image"),
        target=0.6,
        figure="share",
        needs="cuda",
    ),
}


def main() -> int:
    """Measures the rows that were asked for, each in a process of its own."""
    asked = parse()
    if asked.list:
        print(*list_rows(ROWS), sep="\n")
        return 0
    if asked.here:
        return measure_here(asked.here, asked.quick, asked.scratch)
    failed = []
    with tempfile.TemporaryDirectory(prefix="sdpipe-speed-") as scratch:
        for name in asked.only or ROWS:
            began = time.perf_counter()
            here = [sys.executable, __file__, "--here", name, "--scratch", scratch]
            here += ["--quick"] if asked.quick else []
            # transformers tells of an optional package at every import.
            environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
            status = subprocess.run(here, env=environment).returncode
            if status:
                failed.append(name)
                print(f"{name}: failed with status {status}", file=sys.stderr)
                continue
            key, found = json.loads((Path(scratch) / "found.json").read_text())
            print(f"{line(key, found)} [{time.perf_counter() - began:.0f} s]", flush=True)
            if not asked.quick:
                save(RESULTS, key, found)
                if key != name:
                    save(RESULTS, name, {"not_measured": "no AMX"})
                write_table(PAGE, ROWS, read(RESULTS))
    if asked.quick:
        print("quick: small models, few pairs; no figure, and nothing was written")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """The command line.

    --here NAME measures that row in this process and leaves what it found in the scratch folder.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="The rows: " + ", ".join(ROWS)
    )
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", choices=[*ROWS], help="measure these rows"
    )
    parser.add_argument(
        "--quick", action="store_true", help="run them small, on the CPU; write nothing"
    )
    parser.add_argument("--list", action="store_true", help="list the rows and their targets")
    parser.add_argument("--here", choices=[*ROWS], help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_here(name: str, quick: bool, scratch: Path) -> int:
    """Measures one row, under the name that this machine gives it."""
    row, key = ROWS[name], name
    try:
        if not quick:
            key = name + suffix(row)
        from speed_setup import Bench

        from sdpipe import SdpipeWarning

        # Random weights predict no noise: the latents grow. All other warnings change the work.
        warnings.simplefilter("error", SdpipeWarning)
        warnings.filterwarnings("ignore", "the latents grew", SdpipeWarning)
        found = entry(row, row.measure(Bench(quick, scratch)))
    except NotMeasured as reason:
        found = {"not_measured": str(reason)}
    (scratch / "found.json").write_text(json.dumps([key, found]))
    return 0


def suffix(row: Row) -> str:
    """What a row's name ends with on this machine.

    Raises:
        NotMeasured: the machine lacks what the row needs.
    """
    if row.needs == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise NotMeasured("no GPU")
    if row.needs == "bfloat16":
        flags = cpuinfo().get("flags", "").split()
        if "amx_bf16" in flags:
            return ""
        if "avx512_bf16" in flags:
            return AVX512
        if row.anywhere:
            return FLOAT32
        raise NotMeasured("no AMX, no AVX-512 BF16")
    return ""


if __name__ == "__main__":
    sys.exit(main())
