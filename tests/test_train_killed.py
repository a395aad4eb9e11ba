"""`train` that is killed, finds its files damaged, or the disk full: nothing is lost."""

import contextlib
import os
import resource
import shutil
import signal

import pytest
import torch
from training_run import assert_same, options, python

from sdpipe.cli import main
from sdpipe.training import ddpm, fit
from sdpipe.training import model as models
from sdpipe.training.text import OtherWords

# A model of six steps draws nothing yet, and lms, which it prefers, takes that badly.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")


def kill_at(call, loss):
    """Has the process die, as if its plug were pulled, in a call of one of two losses."""
    loss = {"unet": ddpm.DenoisingLoss, "words": OtherWords}[loss]
    original, calls = loss.loss, []

    def dying(self, *arguments):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    loss.loss = dying


@pytest.mark.parametrize(
    ("call", "loss", "stage", "step"),
    [
        (4, "unet", "unet", 3),
        (8, "unet", "joint", 1),
        (2, "words", "other_words", 1),
        (4, "words", "both", 1),
        (6, "words", "both2", 1),
        (8, "words", "spelling", 1),
        (15, "unet", "reading", 1),
        (10, "words", "placing", 1),
    ],
)
def test_a_run_that_was_killed_goes_on_to_the_same_weights(
    material, trained, tmp_path, call, loss, stage, step
):
    code = (
        "import sys, test_train_killed;"
        "from sdpipe.training import fit; from sdpipe.cli import main;"
        f"fit.SAVE_EVERY = fit.SHARE = 0; test_train_killed.kill_at({call}, {loss!r});"
        "main(sys.argv[1:])"
    )
    done = python("-c", code, *options(material, tmp_path / "out"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out" / "unet").exists()
    state = torch.load(tmp_path / "out" / "training" / f"{stage}.checkpoint", weights_only=True)
    assert state["step"] == step
    assert main(options(material, tmp_path / "out")) == 0
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
