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

pytestmark = [
    pytest.mark.slow,
    # After so few steps the U-Net's output is noise, which LMS does not integrate well.
    pytest.mark.filterwarnings("ignore:the latents grew"),
]

KILLED_AT = {
    "vae": 3,
    "decoder": 1,
    "text_encoder": 2,
    "unet": 4,
    "joint": 2,
    "paraphrases": 2,
    "joint_paraphrases": 2,
    "joint_paraphrases2": 1,
    "typos": 2,
    "unet_adaptation": 2,
    "hard_negatives": 2,
}
"""For every stage the step whose checkpoint is being written."""


def test_a_run_that_is_killed_in_every_stage_comes_to_the_same_weights(material, trained, tmp_path):
    assert list(KILLED_AT) == list(STAGES)
    out = tmp_path / "out"
    for stage, step in KILLED_AT.items():
        assert die_while_saving(job(material, out), stage, step) == -signal.SIGKILL
        path = out / "training" / f"{stage}.checkpoint"
        before = torch.load(path, weights_only=True)["step"] if path.exists() else 0
        assert (stage, before) == (stage, step - 1)
        assert [p.name for p in out.iterdir()] == ["training"]
    assert train(job(material, out)) == out
    assert_same_weights(trained, out)
    logs = [m / "training" / "loss.csv" for m in (trained, out)]
    assert len({log.read_text().count("\n") for log in logs}) == 1
    assert not list(out.rglob("*.partial"))


def test_a_damaged_file_is_named_and_made_again(material, trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    for name in ("latents.safetensors", "vae.checkpoint"):
        path = out / "training" / name
        path.write_bytes(path.read_bytes()[:100])
        with raises(SdpipeError, value=str(path), rule="is damaged", remedy="delete it"):
            train(job(material, out))
        path.unlink()
        train(job(material, out))
        assert_same_weights(trained, out)


def test_a_full_disk_before_training_leaves_no_folder(material, trained, tmp_path):
    out, files = tmp_path / "out", trained / "training"
    sizes = {path.name: path.stat().st_size for path in files.iterdir()}
    with no_file_larger_than(sizes["run.json"] // 2), raises(UsageError, value=str(out)):
        train(job(material, out))
    full = raises(SdpipeError, value="images.rgb", rule="(File too large)", remedy="make room")
    with no_file_larger_than(sizes["images.rgb"] - 1), full:
        train(job(material, out))
    assert not out.exists()


def test_a_full_disk_during_training_loses_nothing(material, trained, tmp_path):
    """The files grow from stage to stage, so a limit stops a later one."""
    out, files = tmp_path / "out", trained / "training"
    size, larger = ((files / f"{k}.checkpoint").stat().st_size for k in ("vae", "unet"))
    assert size * 3 // 2 < larger
    with no_file_larger_than(size * 3 // 2), raises(SdpipeError, value="unet.checkpoint"):
        train(job(material, out))
    assert (out / "training" / "vae.checkpoint").stat().st_size == size

    # In the middle of a stage: the last checkpoint stays whole.
    saved = []

    def save(state, file, real):
        saved.append(state["step"])
        with no_file_larger_than(1000 if state["step"] > 2 else 2**40):
            real(state, file)

    with saving_replaced(save), raises(SdpipeError, value="unet.checkpoint"):
        train(job(material, out), save_every=0)
    assert saved == [1, 2, 3]
    assert torch.load(out / "training" / "unet.checkpoint", weights_only=True)["step"] == 2
    train(job(material, out))
    assert_same_weights(trained, out)


def test_a_full_disk_at_the_end_leaves_no_half_model(material, trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained / "training", out / "training")
    with no_file_larger_than(1000), raises(SdpipeError, value=str(out), rule="cannot be written"):
        train(job(material, out))  # all stages are finished: it only writes the model
    assert not (out / "model_index.json").exists()
    assert not (out / "training" / "model.partial").exists()
    train(job(material, out))
    assert_same_weights(trained, out)
