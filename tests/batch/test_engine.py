"""The engine: claims of others, errors of the thread that saves, a folder that goes away."""

import os
import resource
import shutil
import warnings
from functools import partial

import pytest
from support.errors import raises

from sdpipe.batch import run_batch
from sdpipe.batch.batch import Batch
from sdpipe.batch.engine import run_behind
from sdpipe.batch.rows import Rows
from sdpipe.batch.shard import Shard
from sdpipe.errors import SdpipeError, SdpipeWarning
from sdpipe.io.claims import Claims

ROWS = [{"prompt": f"apple {i}", "seed": i} for i in range(6)]
FAST = {"scheduler": "ddim", "steps": 2}


@pytest.fixture(autouse=True)
def _random_weights_draw_no_image():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SdpipeWarning)
        yield


def test_tasks_run_behind_in_order_and_no_error_is_lost():
    assert list(run_behind(partial(pow, 2, k) for k in range(5))) == [1, 2, 4, 8, 16]
    begun = []

    def tasks():
        for k in (1, 0, 2):
            begun.append(k)
            yield partial(divmod, 1, k)

    with pytest.raises(ZeroDivisionError):
        list(run_behind(tasks()))
    assert begun == [1, 0, 2]


def test_a_claim_without_a_sign_of_life_is_taken_over(tiny, tmp_path):
    with Rows(ROWS) as rows, Claims(tmp_path / ".sdpipe") as other:
        work = Batch(tiny, rows, tmp_path, defaults=FAST)
        names = [work.name_of(i) for i in range(6)]
        assert other.take(names[:2]) == names[:2]
        waits = []

        def wait():
            waits.append(len(list(tmp_path.glob("*.png"))))
            if len(waits) < 4:  # the other shows that it works
                for path in (tmp_path / ".sdpipe").glob("*.claim"):
                    os.utime(path, ns=(len(waits), len(waits)))

        drawn = list(work.draw(Shard(), most=2, on_wait=wait, stale=0))
    assert len(drawn) == 6
    assert waits[:4] == [4] * 4


def test_what_another_draws_is_not_drawn_again(tiny, tmp_path):
    with Rows(ROWS) as rows, Rows(ROWS) as same:
        first, second = (Batch(tiny, each, tmp_path, defaults=FAST) for each in (rows, same))
        drawn = []

        def step(_):
            if not drawn:
                drawn.append(None)
                drawn.extend(second.draw(Shard(), most=2, on_wait=lambda: None, stale=0))

        mine = list(first.draw(Shard(), most=2, on_step=step))
    assert len(list(tmp_path.glob("*.png"))) == 6
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    assert len(set(lines)) == len(lines) == 6
    assert len(mine) < 6


def test_a_full_disk_ends_it_whole_and_it_goes_on(tiny, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with raises(SdpipeError, value=str(tmp_path), rule="cannot be written"):
            list(run_batch(tiny, ROWS, tmp_path, defaults=FAST))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*.png"))
    assert len(list(run_batch(tiny, ROWS, tmp_path, defaults=FAST))) == 6


def test_a_folder_that_vanishes_is_not_made_again(tiny, tmp_path):
    out = tmp_path / "o"
    with raises(SdpipeError, value=str(out), rule="no longer there"):
        list(run_batch(tiny, ROWS, out, defaults=FAST, on_step=lambda _: shutil.rmtree(out, True)))
    assert not out.exists()


def test_equal_seeds_of_a_folder_are_kept(tiny, tmp_path):
    rows = [{"prompt": "cat"}, {"prompt": "dog"}]
    first = [each.settings.seed for each in run_batch(tiny, rows, tmp_path, defaults=FAST)]
    shutil.copytree(tmp_path / ".sdpipe", tmp_path / "b" / ".sdpipe")
    again = [each.settings.seed for each in run_batch(tiny, rows, tmp_path / "b", defaults=FAST)]
    assert again == first
    with raises(SdpipeError, value="seed=5", rule="base seed"):
        list(run_batch(tiny, rows, tmp_path, defaults=FAST, seed=5))
