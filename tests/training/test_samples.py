"""Sample sheets: their layout, and when they are drawn."""

import itertools

import numpy as np
from PIL import Image

from sdpipe.training.dataset import CaptionedLatents
from sdpipe.training.imagefolder import Entry, ImageFolder
from sdpipe.training.recipe import Samples
from sdpipe.training.samples import SampleSheets, sheet


def test_a_sheet_has_the_image_of_the_data_above_the_drawing():
    colors = {(255, 0, 0): "red", (0, 128, 0): "green", (0, 0, 255): "blue"}
    cells = [Image.new("RGB", (64, 64), color) for color in colors]
    pixels = np.asarray(sheet(cells, cells[::-1], ["one", "two \N{SNOWMAN}", "word " * 40]))
    found = [[colors[p] for p in map(tuple, row.tolist()) if p in colors] for row in pixels]
    rows = [row for row, _ in itertools.groupby(list(dict.fromkeys(row)) for row in found) if row]
    assert rows == [["red", "green", "blue"], ["blue", "green", "red"]]


class Cells(SampleSheets):
    """Sheets whose drawings are known."""

    def draw(self, loss):
        return [Image.new("RGB", (32, 32))] * len(self.captions)


def test_sheets_are_drawn_at_first_now_and_then_and_at_the_end(tmp_path):
    dataset = ImageFolder(
        [Entry(tmp_path, f"{i}.png", f"number {i}", "") for i in range(2)], 32, ""
    )
    data = CaptionedLatents(dataset, None, None)

    def steps(seconds):
        folder = tmp_path / str(seconds)
        sheets = Cells(data, None, Samples(images=8, seconds=seconds), 4, folder, "unet")
        sheets.originals = sheets.draw(None)
        for step in (1, 2, 3, 4):
            sheets(step, None)
        return sorted(path.name for path in folder.iterdir())

    assert steps(0) == [f"unet-00000{k}.png" for k in (1, 2, 3, 4)]
    assert steps(1000) == ["unet-000001.png", "unet-000004.png"]


def test_there_are_no_sheets_of_no_images(tmp_path):
    dataset = ImageFolder([Entry(tmp_path, "1.png", "one", "")], 32, "")
    data = CaptionedLatents(dataset, None, None)
    Cells(data, None, Samples(images=0), 1, tmp_path / "samples", "unet")(1, None)
    assert not (tmp_path / "samples").exists()
