"""The loop of training: checkpoints that resume, a log, an end where the loss is no number."""

import pytest
import torch
from torch import nn

from sdpipe import NotFiniteError, SdpipeError
from sdpipe.training.loop import fit
from sdpipe.training.train import make_accelerator


class KilledError(Exception):
    pass


class Line(nn.Module):
    """The loss of a line through points that lie on another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(3, 1)

    def forward(self, x):
        return (self.line(x) - x.sum(dim=1, keepdim=True)).square().mean()


def start(folder, *, kill_at=None, steps=60, show=None):
    def batch(step):
        if step == kill_at:
            raise KilledError
        return (torch.randn((8, 3), generator=torch.Generator().manual_seed(step)),)

    folder.mkdir(exist_ok=True)
    model, alone = Line(), make_accelerator("cpu")
    fit("line", model, batch, folder, alone, steps=steps, learning_rate=0.1, ema=0.9, show=show)
    return model.line


def test_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    straight = start(tmp_path / "a")
    monkeypatch.setattr("sdpipe.training.loop.SAVE_EVERY", 0.0)
    monkeypatch.setattr("sdpipe.training.loop.SHARE", 0)
    with pytest.raises(KilledError):
        start(tmp_path / "b", kill_at=31)
    resumed = start(tmp_path / "b")
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.allclose(straight.weight, torch.ones(1, 3), atol=0.1)
    logs = [(tmp_path / k / "loss.csv").read_text().splitlines() for k in "ab"]
    assert logs[0][0] == "stage,step,loss,seconds"
    steps = [[line.split(",")[1] for line in log[1:]] for log in logs]
    assert steps[0] == steps[1] == ["25", "50", "60"]
    assert start(tmp_path / "b", kill_at=0).weight.equal(straight.weight)  # finished: no more steps


def test_what_was_logged_after_the_checkpoint_is_logged_once(tmp_path, monkeypatch):
    with pytest.raises(KilledError):
        start(tmp_path / "a", kill_at=40)  # no checkpoint yet, one line logged
    with (tmp_path / "a" / "loss.csv").open("a") as file:
        file.write("line,5")  # and half of one
    start(tmp_path / "a")
    log = (tmp_path / "a" / "loss.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in log] == ["step", "25", "50", "60"]


def test_checkpoints_are_shown_with_what_the_model_would_be(tmp_path, monkeypatch):
    monkeypatch.setattr("sdpipe.training.loop.SAVE_EVERY", 0.0)
    monkeypatch.setattr("sdpipe.training.loop.SHARE", 0)
    seen = []
    shown = start(
        tmp_path / "a", steps=3, show=lambda step, m: seen.append((step, m.line.weight.clone()))
    )
    assert [step for step, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[-1][1], shown.weight)


def test_a_damaged_checkpoint_is_named(tmp_path):
    start(tmp_path / "a", steps=2)
    path = tmp_path / "a" / "line.checkpoint"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SdpipeError, match=r"line\.checkpoint is damaged .*Delete it"):
        start(tmp_path / "a", steps=2)
    torch.save({"model": {}}, path)
    with pytest.raises(SdpipeError, match=r"line\.checkpoint is damaged"):
        start(tmp_path / "a", steps=2)


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(1, 1)

        def forward(self, x):
            return self.line(x * float("nan")).sum()

    alone = make_accelerator("cpu")
    batch = lambda step: (torch.ones(1, 1),)  # noqa: E731
    with pytest.raises(NotFiniteError, match="loss of the bad is nan at step 25"):
        fit("bad", Bad(), batch, tmp_path, alone, steps=30, learning_rate=0.1)
