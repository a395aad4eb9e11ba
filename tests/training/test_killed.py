"""`train` that is killed, finds its files damaged, or the disk full: nothing is lost."""

import contextlib
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from support.training_run import STAGES, assert_same, options, python

from sdpipe.cli.app import main
from sdpipe.training import loop as fit
from sdpipe.training import model as models

# A model of six steps draws nothing yet, and lms, which it prefers, takes that badly.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")

# In every stage, and the step whose checkpoint is being written then.
KILLED = {
    "vae": 3,
    "decoder": 1,
    "text": 2,
    "unet": 4,
    "joint": 2,
    "other_words": 2,
    "both": 2,
    "both2": 1,
    "spelling": 2,
    "reading": 2,
    "placing": 2,
}


def kill_in(stage, step):
    """Has the process die, as if its plug were pulled, while it writes that step's checkpoint."""
    save = fit._save

    def dying(path, parts, at, seconds):
        if (path.stem, at) == (stage, step):
            torch.save = half
        save(path, parts, at, seconds)

    def half(state, file):
        file.write(b"PK")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    fit._save = dying


def die_in_every_stage(command):
    """Gives the command to one process for each of `KILLED`; prints how it ended, and the files.

    They are forks of this one, which has imported what they need and has no threads.
    """
    fit.SAVE_EVERY = fit.SHARE = 0
    for stage, step in KILLED.items():
        child = os.fork()
        if not child:
            kill_in(stage, step)
            os._exit(main(command))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out = Path(command[-1].removeprefix("--out="))
        path = out / "training" / f"{stage}.checkpoint"
        before = torch.load(path, weights_only=True)["step"] if path.exists() else 0
        print(json.dumps([stage, status, before, sorted(p.name for p in out.iterdir())]))


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_weights(
    material, trained, tmp_path
):
    assert list(KILLED) == list(STAGES)
    command = options(material, tmp_path / "out")
    code = "import sys, test_train_killed as t; t.die_in_every_stage(sys.argv[1:])"
    done = python("-c", code, *command)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        [stage, -signal.SIGKILL, step - 1, ["training"]] for stage, step in KILLED.items()
    ], done.stderr
    assert main(command) == 0
    assert_same(trained, tmp_path / "out")
    logs = [m / "training" / "loss.csv" for m in (trained, tmp_path / "out")]
    assert len({log.read_text().count("\n") for log in logs}) == 1


def test_what_is_damaged_is_named_and_made_again(material, trained, tmp_path, refused, capsys):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    command = options(material, out)
    for name in ("latents.safetensors", "vae.checkpoint"):
        path = out / "training" / name
        path.write_bytes(path.read_bytes()[:100])
        assert f"{path} is damaged" in refused(command, 1)
        path.unlink()
        assert main(command) == 0
        assert_same(trained, out)
        capsys.readouterr()


@contextlib.contextmanager
def no_file_larger_than(size):
    """Every file of this process fails to grow beyond that, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_nothing_is_lost(material, trained, tmp_path, refused, monkeypatch):
    """The files grow from stage to stage, so that each limit stops another one."""
    out, command = tmp_path / "out", options(material, tmp_path / "out")
    sizes = {path.name: path.stat().st_size for path in (trained / "training").iterdir()}
    again = "Make room for it and give the same command again"

    with no_file_larger_than(sizes["run.json"] // 2):
        assert f"{out} cannot be written (File too large)" in refused(command)
    with no_file_larger_than(sizes["pictures.rgb"] - 1):
        said = refused(command, 1)
    assert said.startswith(f"{out}/training/pictures.rgb cannot be written (File too large).")
    assert said.endswith(f"{again}: it goes on from the last checkpoint.")
    assert not out.exists()
    assert sizes["vae.checkpoint"] < sizes["unet.checkpoint"]
    with no_file_larger_than(sizes["vae.checkpoint"] * 3 // 2):
        assert "unet.checkpoint cannot be written (File too large)" in refused(command, 1)
    assert (out / "training" / "vae.checkpoint").stat().st_size == sizes["vae.checkpoint"]

    # In the middle of a stage: the checkpoint from before stays whole.
    monkeypatch.setattr(fit, "SAVE_EVERY", 0)
    monkeypatch.setattr(fit, "SHARE", 0)
    save, saved = fit._save, []

    def fails_from_the_third(path, parts, step, seconds):
        saved.append(step)
        with no_file_larger_than(1000 if step > 2 else 2**40):
            save(path, parts, step, seconds)

    monkeypatch.setattr(fit, "_save", fails_from_the_third)
    assert "unet.checkpoint cannot be written" in refused(command, 1)
    assert saved == [1, 2, 3]
    assert torch.load(out / "training" / "unet.checkpoint", weights_only=True)["step"] == 2
    monkeypatch.setattr(fit, "_save", save)

    write = models._write

    def limited(model, folder):
        with no_file_larger_than(1000):
            write(model, folder)

    with monkeypatch.context() as at_the_end:
        at_the_end.setattr(models, "_write", limited)
        assert f"{out} cannot be written (" in refused(command, 1)
    assert not (out / "model_index.json").exists()
    assert not (out / "training" / "model.partial").exists()
    assert main(command) == 0
    assert_same(trained, out)
