"""What a picture names is had from this machine, or from a person, and from nowhere else."""

import pytest
from support.metadata import change, mine

from sdpipe.errors import ModelError
from sdpipe.loading.locate import is_cached
from sdpipe.metadata.replay import prepare


def test_a_model_of_the_hub_is_loaded_if_it_is_here(monkeypatch, tmp_path):
    """Nothing is fetched because a picture says so; and a path that looks like an id is none."""
    asked = []
    monkeypatch.setattr("sdpipe.metadata.resolve.is_cached", lambda *a, **k: asked.append((a, k)))

    def from_hub(told):
        told["model"].update(name="owner/name@main", revision="c" * 40, sha256=None)

    path = mine(tmp_path / "x.png", from_hub)
    hub_id = f"owner/name@{'c' * 40}"
    with pytest.raises(ModelError, match=f"give it yourself: --model {hub_id}"):
        prepare(path)
    assert asked == [((hub_id,), {"full_precision": True})]
    monkeypatch.setattr("sdpipe.metadata.resolve.is_cached", lambda *a, **k: True)
    assert prepare(path).model == hub_id
    assert prepare(path, model="emoji").model == "emoji"


def test_a_model_that_is_not_cached_is_not_fetched():
    assert not is_cached("no-such-owner/no-such-name@" + "c" * 40)


def test_a_machine_that_is_not_here_is_told(tmp_path):
    def elsewhere(told):
        told.update(device="cuda:97", dtype="float8")

    job = prepare(mine(tmp_path / "x.png", elsewhere))
    assert (job.device, job.dtype) == ("auto", "auto")
    assert job.remarks == (
        "it was drawn in 'float8', which no model is loaded in here.",
        "it was drawn on 'cuda:97', which is not here.",
    )
    absurd = mine(tmp_path / "y.png", change("device", "cuda:99999999999999999999"))
    assert prepare(absurd).device == "auto"
    job = prepare(mine(tmp_path / "z.png", elsewhere), device="cpu", dtype="float32")
    assert (job.device, job.dtype, job.remarks) == ("cpu", "float32", ())
