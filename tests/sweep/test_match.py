"""Whether a file is a cell of a sweep: a difference of one kind at a time."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.metadata import our_metadata, sample_image

from sdpipe.io import png
from sdpipe.metadata.read import read_record
from sdpipe.sweep.match import carries, mismatch

LORA = {"name": "pencil", "sha256": "0" * 64, "weight": 0.5}
WORD = {"name": "pencil", "sha256": "0" * 64, "word": "<pencil>"}


@pytest.fixture
def cell(tmp_path):
    """A file, what it says of itself, and a pipeline that drew it."""
    written = our_metadata()
    path = png.save(sample_image(), tmp_path / "x.png", written)
    identity = {"prediction": None, "loras": [], "embeddings": []} | written["sdpipe"]["model"]
    parts = SimpleNamespace(
        model=SimpleNamespace(identity=lambda: identity),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return path, read_record(path), SimpleNamespace(components=parts, speed="default")


def test_the_same_file_is_the_cell(cell):
    path, record, pipe = cell
    assert mismatch(path, record, record.values, pipe) is None
    png.save(sample_image().rotate(180), path, overwrite=True)
    assert "was changed after" in mismatch(path, record, record.values, pipe)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"speed": "fast"}, "was drawn with speed fast, not default"),
        ({"speed": None}, "was drawn with speed None"),
        ({"dtype": "float16"}, "was drawn on cpu in float16, not on cpu in float32"),
        ({"device": "cuda:1"}, "was drawn on cuda:1 in float32"),
        ({"device": None}, "was drawn on None"),
        ({"loras": (LORA,)}, "other LoRAs"),
        ({"embeddings": (WORD,)}, "other embeddings"),
        ({"parts": {"vae": "owner/vae@x"}}, "other weights"),
        ({"model": {"sha256": "cd" * 32}}, f"other weights ({'cd' * 6}, not {'ab' * 6})"),
        ({"values": {"seed": 7}}, "other settings"),
        ({"source": "AUTOMATIC1111"}, "not an image by sdpipe"),
        ({"sweep": {}}, "not an image by sdpipe"),
    ],
)
def test_a_file_drawn_otherwise_is_another(cell, changes, reason):
    path, record, pipe = cell
    assert reason in mismatch(path, replace(record, **changes), record.values, pipe)


def test_a_device_of_the_same_kind_is_the_same(cell):
    path, record, pipe = cell
    assert mismatch(path, replace(record, device="cpu:0"), record.values, pipe) is None


def test_a_file_carries_its_own_metadata_alone(cell):
    path, _, _ = cell
    assert carries(path, our_metadata())
    assert not carries(path, our_metadata(seed=8))
    assert not carries(path.with_name("missing.png"), our_metadata())
