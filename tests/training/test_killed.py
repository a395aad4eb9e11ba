"""A training that is killed, finds a damaged file or a full disk: nothing is lost."""

import shutil
import signal

import pytest
import torch
from support.errors import raises
from support.training_run import (
    STAGES,
    assert_same_weights,
    die_while_saving,
    job,
    no_file_larger_than,
    saving_replaced,
)

from sdpipe import SdpipeError, UsageError
from sdpipe.training.train import train

# After so few steps the U-Net's output is noise, which LMS does not integrate well.
pytestmark = pytest.mark.filterwarnings("ignore:the latents grew")


def test_a_run_that_stops_in_every_stage_comes_to_the_same_weights(
    material, trained, half_way, tmp_path
):
    """It is killed while it writes two of the checkpoints; the others it finds half done."""
    out = tmp_path / "out"
    for stage, step in {"vae": 3, "unet": 4}.items():
        assert die_while_saving(job(material, out), stage, step) == -signal.SIGKILL
        path = out / "training" / f"{stage}.checkpoint"
        assert torch.load(path, weights_only=True)["step"] == step - 1
        assert [p.name for p in out.iterdir()] == ["training"]
    halves = {path.stem: path for path in half_way.iterdir()}
    assert halves.keys() == STAGES.keys()
    for stage in STAGES.keys() - {"vae", "unet"}:
        shutil.copy(halves[stage], out / "training")
    assert train(job(material, out)) == out
    assert_same_weights(trained, out)
    logs = [m / "training" / "loss.csv" for m in (trained, out)]
    assert len({log.read_text().count("\n") for log in logs}) == 1
    assert not list(out.rglob("*.partial"))


def test_a_damaged_file_is_named_and_made_again(short, shortly_trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(shortly_trained, out)
    for name in ("latents.safetensors", "vae.checkpoint"):
        path = out / "training" / name
        path.write_bytes(path.read_bytes()[:100])
        with raises(SdpipeError, value=str(path), rule="is damaged", remedy="delete it"):
            train(job(short, out))
        path.unlink()
        train(job(short, out))
        assert_same_weights(shortly_trained, out)


def test_a_full_disk_before_training_leaves_no_folder(short, shortly_trained, tmp_path):
    out, files = tmp_path / "out", shortly_trained / "training"
    sizes = {path.name: path.stat().st_size for path in files.iterdir()}
    with no_file_larger_than(sizes["run.json"] // 2), raises(UsageError, value=str(out)):
        train(job(short, out))
    full = raises(SdpipeError, value="images.rgb", rule="(File too large)", remedy="make room")
    with no_file_larger_than(sizes["images.rgb"] - 1), full:
        train(job(short, out))
    assert not out.exists()


def test_a_full_disk_during_training_loses_nothing(short, shortly_trained, tmp_path):
    """The files grow from stage to stage, so a limit stops a later one."""
    out, files = tmp_path / "out", shortly_trained / "training"
    size, larger = ((files / f"{k}.checkpoint").stat().st_size for k in ("vae", "unet"))
    assert size * 3 // 2 < larger
    with no_file_larger_than(size * 3 // 2), raises(SdpipeError, value="unet.checkpoint"):
        train(job(short, out))
    assert (out / "training" / "vae.checkpoint").stat().st_size == size

    # In the middle of a stage: the last checkpoint stays whole.
    saved = []

    def save(state, file, real):
        saved.append(state["step"])
        with no_file_larger_than(1000 if state["step"] > 2 else 2**40):
            real(state, file)

    with saving_replaced(save), raises(SdpipeError, value="unet.checkpoint"):
        train(job(short, out), save_every=0)
    assert saved == [1, 2, 3]
    assert torch.load(out / "training" / "unet.checkpoint", weights_only=True)["step"] == 2
    train(job(short, out))
    assert_same_weights(shortly_trained, out)


def test_a_full_disk_at_the_end_leaves_no_half_model(short, shortly_trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(shortly_trained / "training", out / "training")
    with no_file_larger_than(1000), raises(SdpipeError, value=str(out), rule="cannot be written"):
        train(job(short, out))  # all stages are finished: it only writes the model
    assert not (out / "model_index.json").exists()
    assert not (out / "training" / "model.partial").exists()
    train(job(short, out))
    assert_same_weights(shortly_trained, out)
