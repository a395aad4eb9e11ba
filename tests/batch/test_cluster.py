"""`sdpipe batch --ray` on two nodes of this machine: what dies costs no image, and none is another.

The nodes share no network with anything else. Where that is barred, or Ray cannot start, these
tests are skipped.
"""

import hashlib
import json
import subprocess
import sys
import warnings

import pytest
from support.tiny import tiny_model
from support.two_nodes import NOT_STARTED, in_namespaces, why_barred

from sdpipe.batch import run_batch
from sdpipe.errors import SdpipeWarning

pytestmark = pytest.mark.cluster

ROWS = [{"prompt": f"apple {i}", "steps": 20 + i % 2} for i in range(24)]
FLAGS = ["--device", "cpu", "--dtype", "float32", "--scheduler", "ddim", "--seed", "7"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A model, and the files that one process draws with it, by their names."""
    from sdpipe import Pipeline

    folder = tmp_path_factory.mktemp("one")
    model = tiny_model(folder / "model")
    pipe = Pipeline(model, device="cpu", dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SdpipeWarning)  # random weights draw no image
        list(run_batch(pipe, ROWS, folder / "o", defaults={"scheduler": "ddim"}, seed=7, most=1))
    return model, {path.name: path.read_bytes() for path in folder.glob("o/*.png")}


@pytest.fixture
def drive(tmp_path, one_process):
    """Runs a batch on two nodes, kills, and checks the folder; returns what the drivers said."""
    if reason := why_barred():
        pytest.skip(f"no namespaces: {reason}")
    model, expected = one_process
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "jobs.jsonl").write_text(text)
    images = tmp_path / "o"

    def drive(kills, out):
        command = [
            *(sys.executable, "-m", "sdpipe", "batch", tmp_path / "jobs.jsonl", "--model", model),
            *(*FLAGS, "--batch", "1", "--out", out),
        ]
        script = [sys.executable, "-m", "support.two_nodes", images, json.dumps(kills), *command]
        done = subprocess.run(
            in_namespaces(*map(str, script)),
            cwd="tests",
            capture_output=True,
            text=True,
            timeout=600,  # kills all of them
        )
        if done.returncode == NOT_STARTED:
            pytest.skip(f"Ray cannot start here: {done.stdout}")
        assert done.returncode == 0, done.stderr
        drivers = json.loads(done.stdout.splitlines()[-1])
        status, _, err = drivers[-1]
        assert status == 0, err
        assert {path.name: path.read_bytes() for path in images.glob("*.png")} == expected
        lines = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
        assert {line["file_name"]: line["sha256"] for line in lines} == {
            name: hashlib.sha256(data).hexdigest() for name, data in expected.items()
        }
        assert len(lines) == len(ROWS)
        assert not (images / "failed.jsonl").exists()
        return drivers

    return drive


def told(err):
    """The lines but for two that Ray's C++ writes before anything can be set: of a machine without
    a network, and of its log level."""
    of_ray = ("Failed to determine local IP", "Set ray log level")
    return [line for line in err.splitlines() if not any(text in line for text in of_ray)]


def test_a_killed_actor_costs_no_image_and_a_url_gets_them(drive, tmp_path):
    ((_, out, err),) = drive([[3, "actor"]], f"file://{tmp_path}/o")
    (line,) = told(err)
    assert line.startswith("sdpipe: 24 images: 24 drawn in ")
    assert len(set(out.split())) == 24


@pytest.mark.slow
def test_a_killed_driver_and_a_killed_node_cost_no_image(drive, tmp_path):
    kills = [[3, "actor"], [7, "driver"], [12, "node"]]
    (_, _, _), (_, out, err) = drive(kills, tmp_path / "o")
    begin, rest = told(err)
    before = int(begin.removeprefix("sdpipe: ").split()[0])
    assert before >= 7
    assert begin == f"sdpipe: {before} of 24 images are there already."
    assert rest.startswith("sdpipe: 24 images: ")
    assert rest.endswith(f", {before} there before")
    assert len(set(out.split())) == 24 - before
