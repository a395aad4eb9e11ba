"""Draws the images of the README and the model card: `python docs/make_images.py`.

All come from the built-in model; matplotlib is needed. Every `sdpipe show NAME ...` in the README
is run as it is printed there, and its drawing becomes NAME.png. The same goes for every
`sdpipe sweep` with an image below it, for the command that draws without a seam (seamless.png), and
for the one that draws each line of sheet.txt (sheet.png). With names, as in
`make_images.py steps sheet`, only those are drawn.
"""

import csv
import re
import shlex
import sys
import tempfile
from collections import defaultdict
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

from PIL import Image

import sdpipe
from sdpipe.cli.app import main as run
from sdpipe.show.animation import quantize_colors

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
COMMAND = re.compile(r"^sdpipe (show (\w+) .+?)(?: +#.*)?$", re.MULTILINE)
SHEET = re.compile(r"^sdpipe (generate - .+) < docs/sheet\.txt", re.MULTILINE)
SEAMLESS = re.compile(r"^sdpipe (generate .+ --seamless \w+)$", re.MULTILINE)
SWEEP = re.compile(
    r"^(?:\$ )?sdpipe (sweep .+)\n(?:.+/grid\.png\n)?```\n\n!\[[^]]*\]\(docs/(\w+)\.png\)",
    re.MULTILINE,
)
LOSSES = Path(sdpipe.__file__).parent / "models" / "emoji" / "loss.csv"
ACROSS, GAP = 10, 4
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
    """Writes sheet.png, the drawings of the README's commands, and loss.png beside this file."""
    wanted, readme = set(sys.argv[1:]), README.read_text(encoding="utf-8")
    for command, name in [*COMMAND.findall(readme), *SWEEP.findall(readme)]:
        if not wanted or name in wanted:
            draw(shlex.split(command), HERE / f"{name}.png")
    if not wanted or "seamless" in wanted:
        [command] = SEAMLESS.findall(readme)
        draw_tiles(shlex.split(command), HERE / "seamless.png")
    if not wanted or "sheet" in wanted:
        [command] = SHEET.findall(readme)
        draw_sheet(shlex.split(command), HERE / "sheet.png")
    if not wanted or "loss" in wanted:
        plot_losses(HERE / "loss.png")


def draw(command: list[str], path: Path) -> None:
    """Runs an sdpipe command, and saves its drawing, reduced to a width for a page."""
    image = run_and_read(command)
    if image.width > WIDEST:
        size = (WIDEST, round(WIDEST * image.height / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    quantize_colors(image).save(path, optimize=True)


def run_and_read(command: list[str]) -> Image.Image:
    """Runs an sdpipe command, and returns its drawing."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = command[0] == "sweep"
        path = Path(folder) / ("grid.png" if sweep else "drawn.png")
        draw_into(folder if sweep else str(path), command)
        with Image.open(path) as image:
            return image.convert("RGB")


def draw_into(out: str, command: list[str]) -> None:
    """Runs an sdpipe command with this --out."""
    with redirect_stdout(None):
        status = run([*command, "--out", out])
    if status != 0:
        raise SystemExit(f"sdpipe {shlex.join(command)} failed")


def draw_tiles(command: list[str], path: Path) -> None:
    """Draws two tiles side by side from a command, and two that it draws with a seam."""
    at = command.index("--seamless")
    tiles = [run_and_read(command), run_and_read([*command[:at], *command[at + 2 :]])]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (4 * width + 8 * GAP, height), "white")
    for i, tile in enumerate(tiles):
        for k in range(2):
            sheet.paste(tile, ((2 * i + k) * width + 8 * GAP * i, 0))
    sheet = sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.LANCZOS)
    quantize_colors(sheet).save(path, optimize=True)


def draw_sheet(command: list[str], path: Path) -> None:
    """Draws the images of a command for the lines of sheet.txt on one sheet."""
    with (
        tempfile.TemporaryDirectory() as folder,
        (HERE / "sheet.txt").open(encoding="utf-8") as lines,
        patch.object(sys, "stdin", lines),
    ):
        draw_into(folder, command)
        images = [Image.open(file).convert("RGB") for file in sorted(Path(folder).glob("*.png"))]
    side = images[0].width + GAP
    sheet = Image.new("RGB", (side * ACROSS - GAP, side * (len(images) // ACROSS) - GAP), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % ACROSS * side, i // ACROSS * side))
    sheet.save(path, optimize=True)


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
