"""An actor of a cluster, without the cluster: what it puts at a URL, and what is gone on with."""

import json
import warnings

import fsspec
import pytest
from support.errors import raises

from sdpipe.batch import run_batch
from sdpipe.batch.artist import Artist, Part
from sdpipe.batch.batch import Batch
from sdpipe.batch.rows import Rows
from sdpipe.errors import SdpipeError, SdpipeWarning, UsageError

ROWS = [{"prompt": f"apple {i}", "seed": i} for i in range(3)]
ROWS += [{"prompt": "cat", "seed": 1, "g": 3e38, "id": "too much"}]
FAST = {"scheduler": "ddim", "steps": 2}
LOADED = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def place():
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/apples", recursive=True)


def part_of(work, numbers):
    return Part(
        numbers=tuple(numbers),
        rows=tuple(work.row(i) for i in numbers),
        names=tuple(work.file_name(i) for i in numbers),
        jobs=tuple(work.job(i) for i in numbers),
    )


@pytest.mark.filterwarnings("ignore::sdpipe.errors.SdpipeWarning")
def test_a_url_gets_the_files_that_a_folder_gets(tiny, folder, tmp_path, place):
    list(run_batch(tiny, ROWS, tmp_path, defaults=FAST, most=1, seed=4))
    names = [path.name for path in tmp_path.glob("*.png")]
    url = "memory://apples"
    artist = Artist({"model": folder, **LOADED}, url, True, 1)
    with Rows(ROWS) as rows:
        work = Batch(tiny, rows, url, defaults=FAST, seed=4)
        (first,) = artist({"item": [part_of(work, [0, 1])]})["item"]
        (second,) = artist({"item": [part_of(work, [3])]})["item"]
        assert (first.done, first.failed, first.error) == ((0, 1), {}, None)
        assert second.done == ()
        assert "NaN or infinity" in second.failed[3]
        # One that dies leaves an image without a line; the next one adds it.
        for path in place.glob("/apples/.sdpipe/*.jsonl"):
            if b'"failed"' not in place.cat_file(path):
                place.rm_file(path)
        (third,) = artist({"item": [part_of(work, [1, 2])]})["item"]
        assert third.done == (1, 2)
        again = Batch(tiny, rows, url, defaults=FAST)
        assert list(again.done) == [1, 1, 1, 0]
        again.folder.merge(again.plan, again.done)
    for name in names:
        assert place.cat_file(f"/apples/{name}") == (tmp_path / name).read_bytes()
    for name in ("metadata.jsonl", "failed.jsonl"):
        here = sorted((tmp_path / name).read_text().splitlines())
        assert sorted(place.cat_file(f"/apples/{name}").decode().splitlines()) == here
    assert json.loads(here[0])["id"] == "too much"
    with Rows(ROWS[:1]) as rows, raises(UsageError, rule="is no job of jobs"):
        Batch(tiny, rows, url, defaults=FAST)
    with Rows(ROWS) as rows, raises(UsageError, value="seed=5", rule="base seed"):
        Batch(tiny, rows, url, defaults=FAST, seed=5)


def test_a_folder_that_a_node_does_not_see_ends_the_whole(tiny, folder, tmp_path):
    with Rows(ROWS) as rows, warnings.catch_warnings():
        warnings.simplefilter("ignore", SdpipeWarning)
        work = Batch(tiny, rows, tmp_path / "here", defaults=FAST)
        artist = Artist({"model": folder, **LOADED}, str(tmp_path / "elsewhere"), True, None)
        (answer,) = artist({"item": [part_of(work, [0])]})["item"]
    assert answer.done == ()
    assert isinstance(answer.error, SdpipeError)
    assert answer.error.rule == "is not on all nodes"


def test_a_url_needs_a_known_kind(tiny):
    with Rows(ROWS) as rows, raises(UsageError, value="nowhere://x", rule="cannot be opened"):
        Batch(tiny, rows, "nowhere://x")
