"""What approximate methods save on v1-4's architecture, and what they do to images.

    python benchmarks/approximate.py [--only METHOD ...] [--folder MODEL] [--images] [--quick]

Each method runs in turn with none, in one process. What it saves is measured on v1-4's architecture
with random weights, 512 x 512, from prompt to latents; what it does to images on the
built-in model: how far they are from those without it, and in how many the judge of
prompt_accuracy.py still finds the glyph that was asked for. Writes approximate.json beside this
file, and the table in README.md. With --images the times stay as they are: for a built-in model
that was trained anew.

DeepCache and tomesd are not of sdpipe: pip install DeepCache tomesd. Needs what
prompt_accuracy.py needs.
"""

import argparse
import contextlib
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from judge import Judge
from measure import (
    figures_of_pairs,
    interleave,
    machine,
    put_between,
    round_to_4_digits,
    seconds,
    versions,
)
from PIL import Image
from prompt_accuracy import rmse
from speed_setup import EMOJI, PROMPT, Bench

from sdpipe import Pipeline
from sdpipe.latents import latents_to_pil
from sdpipe.runtime.device import dtype_name, pick_device, pick_dtype
from sdpipe.schedule import make_scheduler

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- approximate.py writes this table -->", "<!-- here its table ends -->"
NAMES, STEPS = 64, 30  # of the built-in model's images
TIMED_STEPS, ROUNDS = 6, 2
CHANGEABLE = not torch.cuda.is_available()  # what a CUDA graph has recorded no method changes

Change = Callable[[Pipeline, int], "contextlib.AbstractContextManager[object]"]


def no_change(pipe: Pipeline, steps: int) -> "contextlib.AbstractContextManager[object]":
    return contextlib.nullcontext()


def deep_cache(every: int) -> Change:
    """Ma et al. (2024): the U-Net's inner levels are computed at every so many steps."""

    @contextlib.contextmanager
    def change(pipe: Pipeline, steps: int) -> Iterator[None]:
        from DeepCache import DeepCacheSDHelper

        parts = pipe.components
        run = make_scheduler("lms", parts.scheduler_config, steps, device=parts.device)
        helper = DeepCacheSDHelper(SimpleNamespace(unet=parts.unet, scheduler=run))
        helper.set_params(cache_interval=every, cache_branch_id=0)
        helper.enable()
        try:
            yield
        finally:
            helper.disable()

    return change


def token_merging(ratio: float) -> Change:
    """Bolya and Hoffman (2023): places that are alike attend as one."""

    @contextlib.contextmanager
    def change(pipe: Pipeline, steps: int) -> Iterator[None]:
        import tomesd

        unet = pipe.components.unet
        # The first level that attends: v1-4's first, of 64 x 64; the built-in model's second.
        attends = [hasattr(block, "attentions") for block in unet.down_blocks]
        tomesd.apply_patch(unet, ratio=ratio, max_downsample=2 ** attends.index(True))
        try:
            yield
        finally:
            tomesd.remove_patch(unet)

    return change


@dataclass(frozen=True)
class Method:
    """What is done in place of the full computation: to the networks, or by settings."""

    title: str
    change: Change = no_change
    settings: Callable[[int], dict[str, Any]] = field(default=lambda steps: {})


METHODS = {
    "interval": Method(
        "guidance between the noise levels 0.5 and 3 alone, `--guidance-interval 0.5,3`",
        settings=lambda _: {"interval": (0.5, 3.0)},
    ),
    "half": Method(
        "half the steps, by DPM++ 2M", settings=lambda n: {"scheduler": "dpm++", "steps": n // 2}
    ),
    "deepcache-2": Method("DeepCache, every second step in full", deep_cache(2)),
    "deepcache-3": Method("DeepCache, every third step in full", deep_cache(3)),
    "tokens": Method("token merging (tomesd), half of the places", token_merging(0.5)),
}


@torch.no_grad()
def measure_savings(folder: Path, chosen: Sequence[str], side: int, rounds: int) -> dict[str, Any]:
    """Seconds of a run's steps without a method, and with it in turn; and those of decoding."""
    pipe = Pipeline(folder, speed=CHANGEABLE)
    common: dict[str, Any] = {"seed": 0, "width": side, "height": side, "g": 7.5}

    def steps(change: Change, settings: dict[str, Any]) -> float:
        with change(pipe, TIMED_STEPS):
            run = pipe.stream(PROMPT, **{**common, "steps": TIMED_STEPS, **settings})
            return seconds(lambda: [None for _ in run])

    steps(no_change, {"steps": 2})
    found: dict[str, Any] = {}
    for name in chosen:
        method = METHODS[name]
        changed = partial(steps, method.change, method.settings(TIMED_STEPS))
        with_it, full = interleave(changed, partial(steps, no_change, {}), rounds, warm_up=0)
        ratios = figures_of_pairs("times", with_it, full)
        found[name] = {
            "times": round_to_4_digits(statistics.median(ratios)),
            "from": round_to_4_digits(min(ratios)),
            "to": round_to_4_digits(max(ratios)),
            "full": [round_to_4_digits(t) for t in full],
            "with": [round_to_4_digits(t) for t in with_it],
        }
        print(name, found[name], flush=True)
    z = torch.randn(1, pipe.components.vae.config.latent_channels, side // 8, side // 8)
    decoding = [seconds(lambda: latents_to_pil(pipe.components.vae, z)) for _ in range(rounds)]
    a_step = statistics.median([t for f in found.values() for t in f["full"]]) / TIMED_STEPS
    return {
        "methods": found,
        "decoding": round_to_4_digits(statistics.median(decoding)),
        "step": a_step,
    }


def measure_images(chosen: Sequence[str], names: int) -> dict[str, Any]:
    """The built-in model's images with each method, beside those without."""
    pipe, judge = Pipeline(EMOJI, speed=CHANGEABLE), Judge()
    asked = random.Random(0).sample(judge.names, names)

    def images(change: Change, settings: dict[str, Any]) -> list[Image.Image]:
        made: list[Image.Image] = []
        with change(pipe, STEPS):
            for i in range(0, names, 16):
                run = {"seed": i, "steps": STEPS, "scheduler": "lms", **settings}
                made += pipe.generate(asked[i : i + 16], **run).images
        found.append(sum(judge.is_a(n, judge.name(p)) for n, p in zip(asked, made, strict=True)))
        return made

    found: list[int] = []
    full = images(no_change, {})
    report: dict[str, Any] = {
        "model": pipe.components.model.identity()["sha256"],
        "dtype": dtype_name(pipe.components.dtype),
        "images": names,
        "full": found[0],
        "methods": {},
    }
    for name in chosen:
        made = images(METHODS[name].change, METHODS[name].settings(STEPS))
        report["methods"][name] = {
            "apart": round_to_4_digits(statistics.mean(map(rmse, full, made))),
            "right": found[-1],
        }
        print(name, report["methods"][name], flush=True)
    return report


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    images, speed = report["images"], report["speed"]
    count = images["images"]
    rows = [
        ("method", "steps of v1-4", "images apart, of 255", f"right of {count}"),
        ("---", "---", "---", "---"),
        ("none", "1x", "0", str(images["full"])),
    ]
    for name, method in METHODS.items():
        if name in speed["methods"]:
            s, p = speed["methods"][name], images["methods"][name]
            times = f"{s['times']:.2f}x ({s['from']:.2f} to {s['to']:.2f})"
            rows.append((method.title, times, f"{p['apart']:.1f}", str(p["right"])))
    whole = speed["decoding"] + 50 * speed["step"]
    most = whole / (whole - speed["decoding"])
    rows.append(("a tiny VAE: all it could save of 50 steps", f"{most:.3f}x", "not measured", ""))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    on = report["machine"]
    drawn_in = "" if images["dtype"] == report["dtype"] else f"; images {images['dtype']}"
    lines.append(f"\nOn {on['cpu']}, {on['threads']} threads, {report['dtype']}{drawn_in}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--folder", type=Path, help="a model of v1-4's architecture, written if not"
    )
    parser.add_argument(
        "--images",
        action="store_true",
        help="draw all of them anew, and keep the times of before",
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, and no result kept")
    options = parser.parse_args()
    rounds, names = (1, 2) if options.quick else (ROUNDS, NAMES)
    if options.images:
        report = json.loads(RESULTS.read_text(encoding="utf-8"))
        report["images"] = measure_images(list(report["speed"]["methods"]), names)
    else:
        report = measure(options.only, options.folder, rounds, names, quick=options.quick)
    print(table(report))
    if options.quick:
        return
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    put_between(PAGE, BEGIN, END, table(report))


def measure(
    chosen: Sequence[str], folder: Path | None, rounds: int, names: int, *, quick: bool
) -> dict[str, Any]:
    """What the methods save, and what they do to images."""
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(quick=quick, scratch=Path(scratch))
        return {
            "machine": machine(),
            "versions": versions() | {name: version(name) for name in ("DeepCache", "tomesd")},
            "dtype": dtype_name(pick_dtype("auto", pick_device("auto"))),
            "images": measure_images(chosen, names),
            "speed": measure_savings(folder or bench.v1_4(), chosen, bench.side, rounds),
        }


if __name__ == "__main__":
    main()
