"""`sdpipe batch`: what it draws, and what of it is drawn already."""

import hashlib
import json
import re
import signal
import subprocess
import time
import warnings
from pathlib import Path

import pytest
from support.forked import forked
from support.tiny import tiny_model

from sdpipe.errors import SdpipeWarning
from sdpipe.io.pixels import load_pixels, pixels_sha256
from sdpipe.metadata.read import read_record

FAST = ["--device", "cpu", "--dtype", "float32", "--scheduler", "ddim", "--steps", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def batch(run, model):
    """Runs a batch of rows: the paths that it prints, and what it says."""

    def batch(rows, *arguments, status=0):
        text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
        Path("jobs.jsonl").write_text(text)
        got, out, err = run(
            "batch", "jobs.jsonl", "--model", model, *FAST, "--out", "o", *arguments
        )
        assert got == status, err
        return out.split(), err

    return batch


def lines(name="metadata.jsonl"):
    return [json.loads(line) for line in Path("o", name).read_text().splitlines()]


def images():
    return {path.name: path.read_bytes() for path in Path("o").rglob("*.png")}


MIXED = [
    {"prompt": "red apple", "seed": 3, "n": 2},
    {"prompt": "red apple", "seed": 4},  # the second of the first row
    {"prompt": "cat", "seed": 1, "g": 1, "id": "a cat"},
    {"prompt": "dog", "seed": 7, "negative_prompt": "cat"},
    {"prompt": "dog, " * 60, "seed": 7},
    {"prompt": "dog", "seed": 8, "steps": 3, "id": 5},
]


def test_every_job_is_the_image_that_generate_draws(batch, model):
    from sdpipe import Pipeline

    paths, err = batch(MIXED)
    assert re.search(r"sdpipe: 6 images: 6 drawn in \d+\.\d s\n$", err)
    assert {["o/a", "cat.png"][0], "o/5.png"} < {*paths}
    pipe = Pipeline(model, device="cpu", dtype="float32")
    found = lines()
    assert len(found) == 6
    for line in found:
        path = Path("o", line["file_name"])
        record = read_record(path)
        assert line["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert dict(record.values) == line["settings"]
        assert record.mark == "trainedAlgorithmicMedia"
        assert (line["text"], line["seed"]) == (record.values["prompt"], record.values["seed"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SdpipeWarning)  # random weights draw no image
            (one,) = pipe.plan(**{k: v for k, v in record.values.items() if v is not None})[0]
            (result,) = pipe.draw([one] * record.n)
        drawn = pixels_sha256(result.images[record.index])
        assert pixels_sha256(load_pixels(path)) == drawn == record.pixels_sha256


def test_what_is_there_is_not_drawn_again_and_more_rows_only_add(batch):
    batch(MIXED[2:4])
    before = images()
    changed = [Path(place).stat().st_mtime_ns for place in ("o", "o/.sdpipe")]
    again, err = batch(MIXED[2:4])
    assert (again, err) == ([], "sdpipe: 2 images: 2 there before\n")
    assert [Path(place).stat().st_mtime_ns for place in ("o", "o/.sdpipe")] == changed  # read-only
    more, err = batch(MIXED[2:])
    assert err.startswith("sdpipe: 2 of 4 images are there already.\n")
    assert len(more) == 2
    assert images().items() > before.items()
    assert len(lines()) == 4
    Path("o", "a cat.png").unlink()
    assert batch(MIXED[2:])[0] == ["o/a", "cat.png"]
    assert len(lines()) == 4
    # An image without a line, as of a process that was killed, is known by its own metadata.
    Path("o/metadata.jsonl").unlink()
    assert batch(MIXED[2:])[0] == []
    assert len(lines()) == 4


def test_a_killed_process_leaves_no_half_and_nothing_is_drawn_twice(model, tmp_path):
    rows = [{"prompt": f"apple {i}", "steps": 2 + i % 2} for i in range(40)]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["batch", "jobs.jsonl", "--model", model, *FAST[:6], "--out", "o", "--batch", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    out = tmp_path / "o"

    def start():
        return forked(*command, cwd=tmp_path, **pipes)

    told = []
    processes = [start(), start()]
    for kill_at in (4, 14):
        until = time.monotonic() + 120
        while len(list(out.glob("*.png"))) < kill_at:
            assert time.monotonic() < until
            time.sleep(0.01)
        victim = processes.pop(0)
        victim.send_signal(signal.SIGKILL)
        told += victim.communicate()[0].split()
        processes.append(start())
    for process in processes:
        text, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        told += text.split()
    assert len(told) == len(set(told))
    assert len(list(out.glob("*.png"))) == 40
    metadata = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len({line["file_name"] for line in metadata}) == len(metadata) == 40
    for line in metadata:
        path = out / line["file_name"]
        assert line["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert pixels_sha256(load_pixels(path)) == read_record(path).pixels_sha256
    assert len({line["settings"]["seed"] for line in metadata}) == 40
    assert {path.name for path in (out / ".sdpipe").iterdir()} == {"seed", "merge.lock"}
    assert not list(out.glob(".*.part"))


def test_interrupted_it_says_how_far_it_came(model, tmp_path):
    rows = [{"prompt": f"apple {i}", "steps": 30} for i in range(200)]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["batch", "jobs.jsonl", "--model", model, *FAST[:6], "--out", "o", "--batch", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with forked(*command, cwd=tmp_path, **pipes) as process:
        until = time.monotonic() + 240
        while len(list(tmp_path.glob("o/*.png"))) < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    done = len(list(tmp_path.glob("o/*.png")))
    assert f"sdpipe: {done} of 200 images are done; the same command goes on.\n" in err
    assert len(out.split()) == done < 200
    assert len((tmp_path / "o/metadata.jsonl").read_text().splitlines()) == done


def test_bad_rows_stop_all_unless_it_keeps_going(batch):
    rows = [{"prompt": "cat", "seed": 1}, "no json\n", {"prompt": "cat", "g": 3e38, "seed": 1}]
    paths, err = batch(rows, status=2)
    assert paths == []
    assert "sdpipe: error: line 2: it is no JSON" in err
    assert "jobs.jsonl has a row that cannot be drawn" in err
    assert not Path("o").exists()
    paths, err = batch(rows, "--keep-going", status=1)
    assert len(paths) == 1
    assert "1 without an image (see failed.jsonl), 1 row left out\n" in err
    (failed,) = lines("failed.jsonl")
    assert (failed["row"], failed["text"]) == (3, "cat")
    assert "NaN or infinity" in failed["reason"]
    paths, err = batch([rows[0]])
    assert paths == []
    assert not Path("o/failed.jsonl").exists()


def test_images_of_another_format_count_as_there_and_are_told(batch):
    batch([{"prompt": "cat", "seed": 1}])
    paths, err = batch(
        [{"prompt": "cat", "seed": 1}, {"prompt": "dog", "seed": 1}], "--format=webp"
    )
    assert "1 image is there as .png, and not drawn again as .webp." in err
    assert [path.rpartition(".")[2] for path in paths] == ["webp"]


def test_images_of_other_jobs_are_not_mixed(batch):
    batch([{"prompt": "cat", "seed": 1}, {"prompt": "dog", "seed": 1, "id": "x"}])
    before = images()
    _, err = batch([{"prompt": "cat", "seed": 1}], status=2)
    assert "o/x.png is no job of jobs.jsonl" in err
    _, err = batch(
        [{"prompt": "cat", "seed": 1}, {"prompt": "dog", "seed": 2, "id": "x"}], status=2
    )
    assert "o/x.png has the name of a job and is not its image" in err
    _, err = batch([{"prompt": "a"}, {"prompt": "cat", "seed": 1}], status=2)
    assert images() == before


def test_shards_share_the_jobs_and_steal_what_is_left(batch):
    rows = [{"prompt": f"apple {i}", "seed": i} for i in range(7)]
    more = ["--per-folder", "3", "--format", "webp"]
    first, _ = batch(rows, "--shard", "1/3", *more)
    assert len(first) == 2
    rest, err = batch(rows, "--shard", "0/3", "--steal", *more)
    assert err.startswith("sdpipe: 2 of 7 images are there already.\n")
    assert len({*first, *rest}) == 7
    assert sorted(path.split("/")[1] for path in (*first, *rest)) == ["00000"] * 3 + [
        *["00001"] * 3,
        "00002",
    ]
    assert batch(rows, "--shard", "2/3", *more)[0] == []

    import datasets

    from sdpipe.training.imagefolder import read_entries

    dataset = datasets.load_dataset("imagefolder", data_dir="o", split="train", cache_dir="cache")
    assert sorted(dataset["text"]) == [row["prompt"] for row in rows]
    assert dataset[0]["image"].size == (32, 32)
    assert dataset[0]["settings"]["steps"] == 2
    entries = read_entries(Path("o"))
    assert sorted(entry.text for entry in entries) == [row["prompt"] for row in rows]
