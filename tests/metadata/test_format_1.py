"""Images that sdpipe wrote before its metadata had a format number are read and drawn again.

The files in format_1/ are real ones, drawn with the built-in model in float32 on a CPU.
"""

import json
import shlex
from pathlib import Path

import pytest

from sdpipe import Result
from sdpipe.cli.app import main
from sdpipe.io import png
from sdpipe.metadata.info import info
from sdpipe.metadata.read import read_record
from sdpipe.metadata.replay import prepare
from sdpipe.metadata.save import metadata_for
from sdpipe.metadata.verify import verify

FOLDER = Path(__file__).parent / "format_1"
DRAWN = {"prompt": "red apple", "seed": 7, "steps": 4, "width": 64, "height": 64, "g": 3}
IMAGES = {
    "plain": {"seed": 9, "n": 1},
    "init": {"strength": 1, "fit": "crop"},
    "hires": {"hires_scale": 1.5, "hires_strength": 0.5},
    "variation": {"variation_strength": 0.4, "variation_seed": 10},
    "interval": {"guidance_interval": (0.3, 9), "guidance_rescale": 0.7, "karras": True},
    "exact": {"batch_invariant": True, "seed": 8, "g": (12, 4), "scheduler": "ddim"},
    "cell": {"guidance_rescale": 0.7, "batch_invariant": True, "steps": 2},
}
BATCHES = {"plain": (3, 2), "variation": (3, 2)}


@pytest.mark.parametrize("name", IMAGES)
def test_it_is_read(name):
    path = FOLDER / f"{name}.png"
    assert "format" not in png.read(path)["sdpipe"]
    found = info(path)
    assert found.unchanged
    settings = found.record.settings()
    expected = {**DRAWN, **IMAGES[name]}
    assert {key: getattr(settings, key) for key in expected} == expected
    assert (found.record.n, found.record.index) == BATCHES.get(name, (1, 0))
    if name == "init":
        assert (settings.init_image.name, settings.mask_image.name) == ("in.png", "mask.png")


@pytest.mark.parametrize("name", IMAGES)
def test_it_is_drawn_again(emoji, name):
    path = FOLDER / f"{name}.png"
    sources = {"init_image": "in.png", "mask_image": "mask.png"} if name == "init" else {}
    job = prepare(path, **{key: FOLDER / file for key, file in sources.items()})
    assert (job.model, job.dtype, job.speed, job.notes) == ("emoji", "float32", "default", ())
    result = Result.join(list(job.draw(emoji)))
    now = metadata_for(result, job.index)["sdpipe"]
    verdict = verify(path, read_record(path), result.images[job.index], now)
    assert verdict.outcome in ("identical", "close"), str(verdict)
    assert now["format"] == 2
    assert now["batch"] == {"n": job.n, "index": job.index}


def test_the_grid_of_a_sweep_names_its_command(capsys):
    assert main(["info", str(FOLDER / "grid.png"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["pixels"]["unchanged"]
    assert found["sweep"]["guidance_rescale"] == [0, 0.7]
    words = shlex.split(found["command"])
    assert words[words.index("--guidance-rescale") + 1] == "0,0.7"
    assert words[words.index("--guidance-interval") + 1] == "0.01,9"
    assert "--batch-invariant" in words
