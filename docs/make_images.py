"""Draws the images of the README, the pages and the model card: `python docs/make_images.py`.

All come from the built-in model; matplotlib is needed. A command with an image below it is run as
it is printed there, after those before it on its page; its drawing becomes docs/images/NAME.png.
The same goes for the tiles (seamless.png); six.png and sheet.png show the prompts of six.txt and
sheet.txt. With names, as in `make_images.py steps sheet`, only those are drawn.
"""

import contextlib
import csv
import io
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pages
from PIL import Image

import sdpipe
from sdpipe import Pipeline
from sdpipe.cli.app import main as run
from sdpipe.io.sheet import Table, draw_sheet
from sdpipe.show.animation import quantize_colors

HERE = Path(__file__).parent
IMAGES = HERE / "images"
LOSSES = Path(sdpipe.__file__).parent / "models" / "emoji" / "loss.csv"
GAP = 4
NAMES = {
    "vae": "VAE",
    "decoder": "decoder",
    "text": "text encoder",
    "unet": "U-Net",
    "joint": "joint",
    "other_words": "other words",
    "both": "both at once",
    "spelling": "spelling",
    "reading": "reading",
    "placing": "placing",
}  # of the stages in loss.csv
TICKS = (0.06, 0.08, 0.1, 0.12, 0.13, 0.14, 0.17, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8)
WIDEST = 1440  # pixels: a page is about 830 wide, on fine screens twice that


def main() -> None:
    """Draws all images, or those that the arguments name."""
    wanted = set(sys.argv[1:])
    for page in pages.pages():
        draw_page(page, wanted)
    for name, seed, across, scale in (("six", 7, 6, 2), ("sheet", 0, 10, 1)):
        if not wanted or name in wanted:
            prompts = (HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines()
            save(draw_prompts(prompts, seed, across, scale), name)
    if not wanted or "loss" in wanted:
        plot_losses(IMAGES / "loss.png")


def draw_page(page: Path, wanted: set[str]) -> None:
    """Runs the commands of a page in an empty folder, and saves what those with an image draw."""
    commands = [c for c in pages.commands(page) if c.runs or c.image]
    names = [c.image for c in commands if c.image and (not wanted or c.image in wanted)]
    if not names:
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for command in commands:
            if command.image in names:
                draw = draw_tiles if "--seamless" in command.words else run_and_read
                save(draw(command.words), command.image)
            elif command.runs:
                run(command.words)


def save(image: Image.Image, name: str) -> None:
    """Saves a drawing, reduced to a width for a page."""
    if image.width > WIDEST:
        size = (WIDEST, round(WIDEST * image.height / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    quantize_colors(image).save(IMAGES / f"{name}.png", optimize=True)


def run_and_read(words: Sequence[str]) -> Image.Image:
    """Runs an sdpipe command, and returns its last drawing."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = run(words)
    if status != 0:
        raise SystemExit(f"sdpipe {' '.join(words)} failed")
    with Image.open(out.getvalue().splitlines()[-1]) as image:
        return image.convert("RGB")


def draw_tiles(words: Sequence[str]) -> Image.Image:
    """Draws two tiles side by side from a command, and two that it draws with a seam."""
    at = words.index("--seamless")
    tiles = [run_and_read(words), run_and_read([*words[:at], *words[at + 2 :]])]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (4 * width + 8 * GAP, height), "white")
    for i, tile in enumerate(tiles):
        for k in range(2):
            sheet.paste(tile, ((2 * i + k) * width + 8 * GAP * i, 0))
    return sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.LANCZOS)


def draw_prompts(prompts: Sequence[str], seed: int, across: int, scale: int) -> Image.Image:
    """Draws an image of each prompt, the next with the next seed, on a sheet with their names."""
    images = Pipeline("emoji").generate(prompts, seed=seed, batch_invariant=True).images
    side = images[0].width * scale
    large = [image.resize((side, side), Image.Resampling.LANCZOS) for image in images]
    names = [prompt.partition(" on a")[0] for prompt in prompts]
    rows = range(0, len(names), across)
    tables = [Table(names[i : i + across], [], [range(i, i + across)]) for i in rows]
    return draw_sheet(tables, (side, side), lambda k: large[k])


def plot_losses(path: Path) -> None:
    """Plots the loss of each training stage over its steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, ScalarFormatter

    stages: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with LOSSES.open(newline="") as file:
        for row in csv.DictReader(file):
            stages[row["stage"]].append((int(row["step"]), float(row["loss"])))
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    drawn = figure.subplots(2, -(-len(stages) // 2))
    for axes in drawn.flat[len(stages) :]:
        axes.set_axis_off()
    for axes, (stage, points) in zip(drawn.flat, stages.items(), strict=False):
        axes.plot(*zip(*points, strict=True), color="#2a6f97", linewidth=1)
        axes.set_yscale("log")
        axes.set_title(NAMES[stage], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(FixedLocator([t for t in TICKS if low <= t <= high]))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.grid(alpha=0.25, linewidth=0.5)
    for axes in drawn[:, 0]:
        axes.set_ylabel("loss")
    for axes in drawn[-1]:
        axes.set_xlabel("step")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
