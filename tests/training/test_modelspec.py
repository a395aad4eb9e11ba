"""The notes of a file of weights, held against the text of ModelSpec 1.0.0."""

import datetime
import hashlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdpipe.training.modelspec import add_notes, modelspec

# Its table: what a file must have, what it should have, and of image generators besides. It has no
# author, whom we do not know.
MUST = {"sai_model_spec", "architecture", "implementation", "title"}
SHOULD = {"description", "date", "hash_sha256", "resolution"}
CAN = {"prediction_type"}


@pytest.fixture
def path(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.float16)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    return tmp_path / "x.safetensors"


def test_a_file_has_what_the_standard_asks_for(tiny, path):
    before = load_file(path)
    add_notes(path, modelspec(tiny.components, "my cats"))
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    assert notes.pop("format") == "pt"
    assert set(notes) == {f"modelspec.{name}" for name in MUST | SHOULD | CAN}
    assert notes["modelspec.sai_model_spec"] == "1.0.0"
    assert notes["modelspec.architecture"] == "stable-diffusion-v1"  # of its list of ids
    assert notes["modelspec.implementation"] == "diffusers"
    assert notes["modelspec.title"] == "my cats"
    assert notes["modelspec.resolution"] == "64x64"  # (width)x(height)
    assert notes["modelspec.prediction_type"] == "epsilon"  # v or epsilon
    assert datetime.date.fromisoformat(notes["modelspec.date"])  # ISO 8601
    after = load_file(path)
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_hash_is_of_all_tensors_without_the_header(path):
    data = path.read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    assert len(tensors) == 6 * 4 + 5 * 2
    for _ in range(2):  # more notes change nothing
        add_notes(path, {"modelspec.title": "my cats"})
        with safe_open(path, "pt") as file:
            found = file.metadata()["modelspec.hash_sha256"]
        assert found == f"0x{hashlib.sha256(tensors).hexdigest()}"
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
