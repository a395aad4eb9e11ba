"""Draws the pictures of the README and the model card: `python docs/make_pictures.py`.

All of them come from the built-in model; the curves of its training, from its loss.csv, need
matplotlib.
"""

import csv
from collections import defaultdict
from pathlib import Path

from PIL import Image

import sdpipe
from sdpipe import Pipeline
from sdpipe.show.filmstrip import filmstrip, titles
from sdpipe.show.steps import columns

HERE = Path(__file__).parent
LOSSES = Path(sdpipe.__file__).parent / "models" / "emoji" / "loss.csv"
SHEET = [
    "red apple", "panda", "rocket", "octopus", "sunflower", "pizza", "guitar", "tiger face",
    "woman astronaut", "thinking face", "balloon on a blue background",
    "avocado on a pink background", "ghost on a purple background", "owl on a green background",
    "light bulb on a black background", "rainbow on a gray background",
    "whale on a yellow background", "sailboat on an orange background",
    "robot on a yellow background", "castle on a pink background", "small fox on the left",
    "large frog on the right", "medium crab at the bottom", "small bee at the top", "large snail",
    "small key in the centre on a black background", "large pear at the top",
    "medium ant on the right on a yellow background",
    "small moai on the left on a pink background",
    "large trophy at the bottom on a blue background", "a cat left of a rocket",
    "a banana above a red car", "an owl right of a hamburger", "a red heart below a snail",
    "a ghost left of a pumpkin", "a dolphin above a water wave", "a bee right of a tulip",
    "a mouse face left of a cheese wedge", "a rocket above a ringed planet on a black background",
    "a frog below a crown on a pink background",
]  # fmt: skip
ACROSS, GAP = 10, 4


def main() -> None:
    """Writes sheet.png, filmstrip.png and loss.png beside this file."""
    pipe = Pipeline("emoji")
    images = pipe.generate(SHEET, seed=0, exact=True).images
    side = images[0].width + GAP
    sheet = Image.new("RGB", (side * ACROSS - GAP, side * (len(images) // ACROSS) - GAP), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % ACROSS * side, i // ACROSS * side))
    sheet.save(HERE / "sheet.png", optimize=True)

    sunflower = "sunflower on a blue background"
    result = pipe.generate(sunflower, seed=3, steps=20, save_int=True)
    strip = filmstrip(columns(pipe.components.vae, result, 0), *titles(result.settings[0]))
    strip.save(HERE / "filmstrip.png", optimize=True)
    plot_losses(HERE / "loss.png")


def plot_losses(path: Path) -> None:
    """The loss of each stage of the training over its steps."""
    from matplotlib.figure import Figure

    stages: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with LOSSES.open(newline="") as file:
        for row in csv.DictReader(file):
            stages[row["stage"]].append((int(row["step"]), float(row["loss"])))
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for axes, (stage, points) in zip(figure.subplots(1, len(stages)), stages.items(), strict=True):
        axes.plot(*zip(*points, strict=True), color="#2a6f97", linewidth=1)
        axes.set(title=stage, xlabel="step", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, which="both", linewidth=0.5)
    figure.axes[0].set_ylabel("loss")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
