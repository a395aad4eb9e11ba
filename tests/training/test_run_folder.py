"""A run's folder: another run is not continued, and other content is not touched."""

from pathlib import Path

import pytest
from support.errors import raises

from sdpipe import UsageError
from sdpipe.training.run_folder import check_out, init_run_dir, remove_run_dir

RUN = {
    "recipe": {"seed": 1, "vae.ema_decay": 0.9},
    "from": None,
    "data": [["red.png", "a red square", "12"], ["blue.png", "a blue square", "34"]],
}


def other(**changes):
    return {**RUN, **changes}


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (other(recipe={"seed": 1, "vae.ema_decay": 0.8}), "vae.ema_decay was 0.9 and is now 0.8"),
        (other(recipe={"seed": 1}), "vae.ema_decay was 0.9 and is now None"),
        (other(**{"from": "abc"}), "it started from None, not from abc"),
        (other(data=RUN["data"][:1]), "blue.png is no longer in the data"),
        (other(data=[*RUN["data"], ["tan.png", "", ""]]), "tan.png is new in the data"),
        (other(data=[["tan.png", "", ""], RUN["data"][1]]), "has tan.png in place of red.png"),
        (other(data=[["red.png", "one", "12"], RUN["data"][1]]), "red.png was 'a red square' and"),
        (other(data=[["red.png", "a red square", "9"], RUN["data"][1]]), "red.png has changed"),
    ],
)
def test_another_run_is_refused_with_the_first_difference(tmp_path, changed, difference):
    out = tmp_path / "out"
    assert init_run_dir(out, RUN, "a recipe")
    assert not init_run_dir(out, RUN, "a recipe")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with raises(UsageError, value=str(out), rule=difference, remedy="another --out"):
        init_run_dir(out, changed, "another recipe")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_other_content_is_not_touched(tmp_path):
    (tmp_path / "file").touch()
    with raises(UsageError, rule="is not a folder"):
        check_out(tmp_path / "file")
    with raises(UsageError, rule="is neither empty nor a training run"):
        check_out(tmp_path)
    with raises(UsageError, rule="cannot be written (Not a directory)"):
        init_run_dir(tmp_path / "file" / "out", RUN, "")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "run.json").write_text("{")
    with raises(UsageError, value="run.json", rule="cannot be read"):
        init_run_dir(tmp_path, RUN, "")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that root cannot write")
def test_a_folder_that_cannot_be_written_is_refused():
    with raises(UsageError, value="/proc/out", rule="cannot be written ("):
        init_run_dir(Path("/proc/out"), RUN, "")


def test_a_run_dir_is_removed_without_its_neighbours(tmp_path):
    init_run_dir(tmp_path / "new", RUN, "")
    remove_run_dir(tmp_path / "new")
    (tmp_path / "old").mkdir()
    init_run_dir(tmp_path / "old", RUN, "")
    (tmp_path / "old" / "notes.txt").touch()
    remove_run_dir(tmp_path / "old")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["notes.txt", "old"]
