"""How well the built-in model draws what it is asked for.

    python benchmarks/prompt_accuracy.py [--model emoji] [--only PART ...] [--quick] [--batch 16]

Each function from `glyph` to `cost` measures one thing; accuracy_scenes.py has what is asked for,
and judge.py says what an image shows, from the font alone. Needs the font and the package emoji,
as training does. Writes prompt_accuracy.json beside this file, anew after each part; with --only
the other parts stay, if they are of the same weights. --quick runs four parts with fewer images,
--limit N all of them with N names, for a trial.
"""

import argparse
import itertools
import json
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
import transformers
from accuracy_scenes import (
    FIRST_SEED,
    KINDS,
    NAMES,
    STEPS,
    Bench,
    couples,
    tally_alone,
    tally_coloured,
    tally_paired,
    tally_placed,
)
from judge import Tally, check
from PIL import Image

from sdpipe.components import load
from sdpipe.errors import SdpipeWarning
from sdpipe.latents import latents_to_pil, pil_to_latents
from sdpipe.loading.weights import sha256
from sdpipe.runtime.device import dtype_name
from sdpipe.training.emoji import glyphs
from sdpipe.training.emoji.paraphrase import add_typo, pluralize
from sdpipe.training.emoji.scenes import RELATIONS, with_article

QUICK_NAMES = 64
HIGH_G = 7.5
CURVE = (1.0, 2.0, 3.0, 5.0, HIGH_G, 12.0)
SEEDS, SEEDED_NAMES = 16, 20
LORA, FEW = "emoji-lcm", 4  # the LoRA for few steps, and the steps that it is for
SOLVERS = {"lms": "LMS", "euler": "Euler", "dpm++": "DPM++ 2M"}

Figures = dict[str, Any]


def glyph(bench: Bench) -> Figures:
    """Glyph and background, from the name alone."""
    return {"g": bench.own["g"], **bench.tally(tally_alone).figures()}


def guidance(bench: Bench) -> Figures:
    """Every kind of scene at each g: the share in which all is right, and of all kinds together."""
    curve: Figures = {}
    for g in CURVE:
        tallies = {kind: bench.tally(draw, g) for kind, draw in KINDS.items()}
        right = [all(image.values()) for tally in tallies.values() for image in tally.right]
        curve[f"{g:g}"] = {
            **{kind: tally.figures() for kind, tally in tallies.items()},
            "images": len(right),
            "all": round(sum(right) / len(right), 4),
        }
    best = max(figures["all"] for figures in curve.values())
    return {**curve, "best at": [g for g, figures in curve.items() if figures["all"] == best]}


def solvers(bench: Bench) -> Figures:
    """The names alone at a high g, by three schedulers."""
    return {name: bench.tally(tally_alone, HIGH_G, name).figures() for name in SOLVERS}


def colour(bench: Bench) -> Figures:
    """Glyph and background, of names and colours held out."""
    return bench.tally(tally_coloured).figures()


def place(bench: Bench) -> Figures:
    """Glyph, size and place, of names, sizes and places held out."""
    return bench.tally(tally_placed).figures()


def pair(bench: Bench) -> Figures:
    """Two glyphs, each in its place, of pairs held out."""
    tally, relations = bench.tally(tally_paired), [scene.relation for scene in couples(bench)]
    by_relation = {
        name: tally.only([relation == name for relation in relations]).figures()["all"]
        for name in RELATIONS
        if name in relations
    }
    return {**tally.figures(), "by relation": by_relation}


def words(bench: Bench) -> Figures:
    """The names in other words. `points` is the difference from the same names alone."""
    rng = random.Random(0)

    def typo(name: str) -> str:
        """One letter wrong, but no other name; the name itself where no word has four letters."""
        texts = (add_typo(name, rng) for _ in range(100))
        return next((t for t in texts if t != name and t not in bench.judge.inks), name)

    ways: dict[str, Callable[[str], str]] = {
        "picture of a NAME": lambda name: f"picture of {with_article(name)}",
        "one NAME": lambda name: f"one {name}",
        "plural": pluralize,
        "capitals": str.upper,
        "one letter wrong": typo,
    }
    found = {}
    for way, say in ways.items():
        prompts = [say(name) for name in bench.names]
        changed = [prompt != name for prompt, name in zip(prompts, bench.names, strict=True)]
        tally = bench.tally_on_white(prompts).only(changed)
        both = (tally, bench.tally(tally_alone).only(changed))
        said, unsaid = (t.figures()["glyph"] for t in both)
        points = round(100 * (said - unsaid), 2)
        found[way] = {**tally.figures(), "alone": unsaid, "points": points}
    return found


def seeds(bench: Bench) -> Figures:
    """How much images of the same name differ: the root of the mean squared difference."""
    tally, means, nearest = Tally(), [], []
    for name in bench.names[:SEEDED_NAMES]:
        images = list(bench.draw([name] * SEEDS))
        for image in images:
            seen = bench.judge.name(image, scales=bench.scale)
            tally.add(name, seen, glyph=bench.judge.is_a(name, seen))
        apart = [rmse(*two) for two in itertools.combinations(images, 2)]
        means.append(statistics.mean(apart))
        nearest.append((round(min(apart), 2), name))
    return {
        **tally.figures(),
        "mean distance": round(statistics.mean(means), 2),
        "nearest two": min(nearest),
    }


def few_steps(bench: Bench) -> Figures:
    """The names alone in four steps, with the LoRA and without it, and what an image takes in
    evaluations of the U-Net; with the LoRA the other kinds too.
    """
    distilled = bench.with_lora(LORA)
    ways: dict[str, tuple[Bench, dict[str, Any]]] = {
        LORA: (distilled, {}),
        "the model, lcm, g 1": (bench, {"g": 1.0, "scheduler": "lcm"}),
        "the model": (bench, {}),
    }
    found: Figures = {"steps": FEW, f"evaluations in {STEPS}": evaluations(bench)}
    for way, (drawn_by, settings) in ways.items():
        count = evaluations(drawn_by, steps=FEW, **settings)
        figures = tally_alone(drawn_by, steps=FEW, **settings).figures()
        found[way] = {"evaluations": count, **figures}
    for kind, draw in list(KINDS.items())[1:]:  # the first is the names alone
        found[kind] = draw(distilled, steps=FEW).figures()
    return found


def evaluations(bench: Bench, **settings: Any) -> int:
    """How many U-Net evaluations an image takes; a guided step is two."""
    counts: list[int] = []
    unet = bench.pipe.components.unet
    hook = unet.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    list(bench.draw(["red apple"], **settings))
    hook.remove()
    return sum(counts)


def vae(bench: Bench) -> Figures:
    """What is left of images that the VAE never saw, and of the model's own: PSNR in dB."""
    model = load(bench.model, dtype="float32").vae
    found: dict[str, list[float]] = {}
    for kind, inks in {**unseen(), "own": list(bench.judge.inks.values())[::8]}.items():
        found[kind] = []
        for ink in inks if bench.all_names else inks[: bench.count]:
            image = glyphs.draw([(ink, 0.96, (0, 0))], bench.own["width"])
            [again] = latents_to_pil(model, pil_to_latents(model, image))
            found[kind].append(20 * float(np.log10(255 / rmse(image, again))))
    values = [psnr for kind, some in found.items() if kind != "own" for psnr in some]
    return {
        "images": len(values),
        "mean": round(statistics.mean(values), 2),
        "worst": round(min(values), 2),
        "by kind": {
            kind: {"images": len(some), "mean": round(statistics.mean(some), 2)}
            for kind, some in found.items()
        },
    }


def unseen() -> dict[str, list[Image.Image]]:
    """The ink of the flags and keycaps of the font, which no training has."""
    from emoji import EMOJI_DATA, STATUS

    font = glyphs.load_font()
    kinds: dict[str, list[Image.Image]] = {"keycaps": [], "flags of regions": [], "other flags": []}
    for text, entry in EMOJI_DATA.items():
        marks = set(map(ord, text))
        if entry["status"] != STATUS["fully_qualified"]:
            continue
        if glyphs.KEYCAP in marks:
            kinds["keycaps"].append(glyphs.render(text, font))
        elif marks & {*glyphs.REGIONS, *glyphs.TAGS}:
            kinds["flags of regions"].append(glyphs.render(text, font))
        elif "flag" in glyphs.plain_name(entry["en"]):
            kinds["other flags"].append(glyphs.render(text, font))
    return kinds


def rmse(one: Image.Image, other: Image.Image) -> float:
    """The root of the mean squared difference of two images, in levels of 255."""
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return float(np.sqrt(np.square(difference).mean()))


def cost(bench: Bench) -> Figures:
    """The size of the model's files, and what an image costs beside its three networks."""
    parts = bench.pipe.components
    assert parts.model.folder is not None
    files = [path for path in parts.model.folder.rglob("*") if path.is_file()]
    inside = 0.0

    def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        started = time.perf_counter()
        result = function(*args, **kwargs)
        inside += time.perf_counter() - started
        return result

    calls = ((parts.unet, "forward"), (parts.text_encoder, "forward"), (parts.vae, "decode"))
    whole, outside = [], []
    with ExitStack() as stack:
        for part, name in calls:
            stack.enter_context(patch.object(part, name, partial(timed, getattr(part, name))))
        for i in range(6):
            inside, started = 0.0, time.perf_counter()
            bench.pipe.generate("red apple", steps=STEPS, seed=FIRST_SEED + i)
            whole.append(time.perf_counter() - started)
            outside.append(1 - inside / whole[-1])
    return {
        "megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 2),
        "an image's seconds": round(statistics.median(whole[1:]), 3),  # the first one warms up
        "share outside": round(statistics.median(outside[1:]), 4),
    }


def weights(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a model's weights."""
    files = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


# The curve comes early: where it peaks is the g that most of the others are measured at.
PARTS = (glyph, guidance, solvers, colour, place, pair, words, few_steps, seeds, vae, cost)
QUICK = (glyph, colour, place, pair)


def table(report: Figures) -> str:
    """What was measured beside what it should be, in Markdown."""
    rows = [("", "target", "measured"), ("---", "---", "---")]
    parts = report["parts"]

    def percent(figures: Figures, *names: str) -> str:
        """The first as a figure, the others in brackets behind it."""
        said = [f"{100 * figures[name]:.1f} %" for name in names]
        rest = ", ".join(f"{n} {s}" for n, s in zip(names[1:], said[1:], strict=True))
        return f"{said[0]} ({rest})" if rest else said[0]

    if p := parts.get("glyph"):
        rows += [
            (f"the name alone, g {p['g']:g}: glyph", "98 %", percent(p, "glyph")),
            ("the name alone: white background", "99 %", percent(p, "background")),
        ]
    for solver, p in parts.get("solvers", {}).items():
        if solver in SOLVERS:
            title = f"the name alone, g {HIGH_G:g}, {SOLVERS[solver]}: glyph"
            rows.append((title, "95 %", percent(p, "glyph")))
    if p := parts.get("colour"):
        title = "on another colour, held out: glyph and background"
        rows.append((title, "95 %", percent(p, "all", "glyph", "background")))
    if p := parts.get("place"):
        title = "of a size, at a place, held out: glyph, size and place"
        rows.append((title, "90 %", percent(p, "all", "glyph", "size", "place")))
    if p := parts.get("pair"):
        title = "two glyphs, held out: both, each in its place"
        rows.append((title, "80 %", percent(p, "all", "first", "second")))
    for way, p in parts.get("words", {}).items():
        if isinstance(p, dict) and way != "on":
            said = f"{percent(p, 'glyph')} ({p['points']:+.1f} points)"
            rows.append((f"other words, {way}: glyph", "at most 5 points lower", said))
    if p := parts.get("guidance"):
        gs = [f"{g:g}" for g in CURVE]
        for kind in KINDS:
            said = ", ".join(percent(p[g][kind], "all") for g in gs)
            rows.append((f"{kind}, g {', '.join(gs)}: all right", "", said))
        said = f"{', '.join(percent(p[g], 'all') for g in gs)}; best at g {', '.join(p['best at'])}"
        rows.append((f"all these, g {', '.join(gs)}", "peaks at the model's g", said))
    if p := parts.get("few_steps"):
        title = f"the name alone, {p['steps']} steps with {LORA}: glyph"
        rows.append((title, "95 %", percent(p[LORA], "glyph")))
    if p := parts.get("seeds"):
        said = f"{p['mean distance']:.1f} (the nearest two {p['nearest two'][0]:.1f})"
        rows.append((f"{SEEDS} seeds: distance of two pictures, of 255", "", said))
        rows.append((f"{SEEDS} seeds: glyph", "", percent(p, "glyph")))
    if p := parts.get("vae"):
        said = f"{p['mean']:.1f} dB (its own glyphs {p['by kind']['own']['mean']:.1f} dB)"
        rows.append(("VAE, flags and keycaps that it never saw: PSNR", "28 dB", said))
    if p := parts.get("cost"):
        rows += [
            ("all files of the model", "at most 40 MB", f"{p['megabytes']:.1f} MB"),
            ("time outside the three networks", "at most 10 %", percent(p, "share outside")),
        ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def processor() -> str:
    """The name of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def line(figures: Figures) -> str:
    """The figures without the lists of what was wrong."""
    shown = {name: value for name, value in figures.items() if name != "wrong"}
    return ", ".join(
        f"{name} ({line(value)})" if isinstance(value, dict) else f"{name} {value}"
        for name, value in shown.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", choices=[part.__name__ for part in PARTS]
    )
    parser.add_argument("--quick", action="store_true", help=f"four parts, {QUICK_NAMES} names")
    parser.add_argument("--batch", type=int, default=16, help="images drawn at a time")
    parser.add_argument("--limit", type=int, default=NAMES, help="names at most, for a trial")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", SdpipeWarning)  # of words that are meant to be wrong

    count = min(options.limit, QUICK_NAMES if options.quick else NAMES)
    bench = Bench(options.model, options.batch, count)
    parts = bench.pipe.components
    here = {
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "device": str(parts.device),
        "dtype": dtype_name(parts.dtype),
        "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
    }
    assert parts.model.folder is not None
    report: Figures = {
        "model": {**parts.model.identity(), "sha256": weights(parts.model.folder)},
        **here,
        "steps": STEPS,
        "judge": {},
        "parts": {},
    }
    before: Figures = {}
    if options.only and options.output.exists():
        before = json.loads(options.output.read_text())
    if before and before["model"]["sha256"] == report["model"]["sha256"]:
        report |= {name: before[name] for name in (*here, "judge", "parts")}

    def measure(part: Callable[[], Figures], name: str, among: Figures) -> None:
        started = time.monotonic()
        figures = part()
        among[name] = {**figures, "seconds": round(time.monotonic() - started, 1)}
        if on := {key: value for key, value in here.items() if value != report[key]}:
            among[name]["on"] = on  # another machine than that of the other parts
        print(f"{name}: {line(among[name])}", flush=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")

    if not report["judge"]:
        some = None if bench.all_names else 4 * count
        measure(partial(check, bench.judge, bench.own["width"], some), "judge", report)
    for part in QUICK if options.quick else PARTS:
        if not options.only or part.__name__ in options.only:
            measure(partial(part, bench), part.__name__, report["parts"])
    print(f"\n{table(report)}\n\nwritten to {options.output}")


if __name__ == "__main__":
    main()
