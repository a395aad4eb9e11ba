"""How well the built-in model draws what it is asked for.

    python benchmarks/prompt_accuracy.py [--model emoji] [--names 96] [--batch 16]

Draws names from a fixed list, and asks of every picture which glyph that the model was trained on
is nearest to it, in plain pixels: the judge is the font, and shares nothing with the model. Needs
the font and the package emoji, as training does. Writes prompt_accuracy.json beside this file.
"""

import argparse
import json
import platform
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sdpipe import Pipeline
from sdpipe.training import glyphs
from sdpipe.training.recipe import load_recipe

SIDE = 32  # pixels a side at which pictures are compared
SCALES = (0.92, 0.96, 1.0)


def small(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()


class Judge:
    """Names the glyph whose rendering, on a given background, is nearest to a picture."""

    def __init__(self, size: int) -> None:
        font = glyphs.load_font()
        chosen = glyphs.glyphs(load_recipe().pictures)
        self.size = size
        self.ink = {g.name: glyphs.render(g.text, font) for g in chosen}
        self.ink = {name: ink for name, ink in self.ink.items() if ink.getbbox() is not None}
        self.names = [name for name in self.ink for _ in SCALES]
        self.known: dict[str, np.ndarray] = {}

    def name(self, picture: Image.Image, colour: str) -> str:
        if colour not in self.known:
            plain = glyphs.COLOURS[colour]
            self.known[colour] = np.stack(
                [
                    small(glyphs.draw(ink, self.size, plain, scale=scale))
                    for ink in self.ink.values()
                    for scale in SCALES
                ]
            )
        distance = np.square(self.known[colour] - small(picture)).sum(axis=1)
        return self.names[int(distance.argmin())]


def background(picture: Image.Image) -> str:
    """The colour whose value is nearest to the middle one of the picture's rim."""
    rim = np.asarray(picture, np.float32)
    rim = np.concatenate([rim[:3].reshape(-1, 3), rim[-3:].reshape(-1, 3)])
    middle = np.median(rim, axis=0)
    return min(glyphs.COLOURS, key=lambda name: float(np.abs(glyphs.COLOURS[name] - middle).sum()))


def measure(pipe, judge, names, colours, batch, **settings) -> dict[str, object]:
    glyph = colour = both = 0
    wrong = []
    started = time.monotonic()
    for i in range(0, len(names), batch):
        part = list(zip(names[i : i + batch], colours[i : i + batch], strict=True))
        prompts = [glyphs.caption(n, None if c == "white" else c) for n, c in part]
        images = pipe.generate(prompts, seed=1000 + i, **settings).images
        for (n, c), image in zip(part, images, strict=True):
            seen, ground = judge.name(image, c), background(image)
            glyph += seen == n
            colour += ground == c
            both += seen == n and ground == c
            if seen != n:
                wrong.append(f"{n}: {seen}")
    count = len(names)
    return {
        **settings,
        "pictures": count,
        "glyph": round(glyph / count, 4),
        "colour": round(colour / count, 4),
        "both": round(both / count, 4),
        "seconds_a_picture": round((time.monotonic() - started) / count, 3),
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--names", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="the default settings only")
    options = parser.parse_args()

    pipe = Pipeline(options.model)
    defaults = pipe.components.defaults
    judge = Judge(defaults["width"])
    names = random.Random(0).sample(sorted(judge.ink), options.names)
    white = ["white"] * len(names)
    others = [c for c in glyphs.COLOURS if c != "white"]
    coloured = [others[i % len(others)] for i in range(len(names))]

    g, order = defaults["g"], defaults.get("lms_order", 4)
    runs = [
        ("white, its own settings", white, {"g": g, "steps": defaults["steps"]}),
        ("nine other colours, its own settings", coloured, {"g": g, "steps": defaults["steps"]}),
    ]
    if not options.quick:
        runs += [(f"white, g {v:g}", white, {"g": v, "steps": 30}) for v in (1, 5, 7.5)]
        high = {"g": 7.5, "steps": 30}
        runs += [
            (f"white, g 7.5, {name}", white, {**high, "scheduler": name})
            for name in ("euler", "dpm++")
        ]
        runs += [
            (f"white, g 7.5, lms of order {o}", white, {**high, "lms_order": o})
            for o in (1, 2, 3, 4)
            if o != order
        ]
    results = {}
    for title, colours, settings in runs:
        results[title] = measure(pipe, judge, names, colours, options.batch, **settings)
        shown = {k: v for k, v in results[title].items() if k != "wrong"}
        print(f"{title}: {shown}", flush=True)
    report = {
        "model": pipe.components.identity(),
        "glyphs": len(judge.ink),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "dtype": str(pipe.components.dtype).removeprefix("torch."),
        "results": results,
    }
    path = Path(__file__).with_name("prompt_accuracy.json")
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
