"""The training loop: checkpoints that resume to the same bits, a log, and an end at NaN."""

import pytest
import torch
from support.errors import raises
from torch import nn

from sdpipe import NotFiniteError, SdpipeError
from sdpipe.training.loop import Interval, fit
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


def start(folder, *, kill_at=None, steps=60, **options):
    def batch(step):
        if step == kill_at:
            raise KilledError
        return (torch.randn((8, 3), generator=torch.Generator().manual_seed(step)),)

    folder.mkdir(exist_ok=True)
    model, accelerator = Line(), make_accelerator("cpu")
    options = {"steps": steps, "learning_rate": 0.1, "ema_decay": 0.9, **options}
    fit("line", model, batch, folder, accelerator, **options)
    return model.line


def test_a_killed_training_continues_to_the_same_bits(tmp_path):
    straight = start(tmp_path / "a")
    with pytest.raises(KilledError):
        start(tmp_path / "b", kill_at=31, save_every=0)
    resumed = start(tmp_path / "b")
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.allclose(straight.weight, torch.ones(1, 3), atol=0.1)
    logs = [(tmp_path / k / "loss.csv").read_text().splitlines() for k in "ab"]
    assert logs[0][0] == "stage,step,loss,seconds"
    steps = [[line.split(",")[1] for line in log[1:]] for log in logs]
    assert steps[0] == steps[1] == ["25", "50", "60"]
    assert start(tmp_path / "b", kill_at=0).weight.equal(
        straight.weight
    )  # finished: no further steps


def test_each_step_is_logged_once(tmp_path):
    with pytest.raises(KilledError):
        start(tmp_path / "a", kill_at=40)  # no checkpoint yet, but a line in the log
    with (tmp_path / "a" / "loss.csv").open("a") as file:
        file.write("line,5")  # and half of one
    start(tmp_path / "a")
    log = (tmp_path / "a" / "loss.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in log] == ["step", "25", "50", "60"]


def test_each_checkpoint_is_handed_on_with_the_averaged_model(tmp_path):
    seen = []
    last = start(
        tmp_path / "a",
        steps=3,
        save_every=0,
        on_checkpoint=lambda step, m: seen.append((step, m.line.weight.clone())),
    )
    assert [step for step, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[-1][1], last.weight)


def test_a_damaged_checkpoint_is_named(tmp_path):
    start(tmp_path / "a", steps=2)
    path = tmp_path / "a" / "line.checkpoint"
    path.write_bytes(path.read_bytes()[:-200])
    with raises(SdpipeError, value="line.checkpoint", rule="is damaged", remedy="delete it"):
        start(tmp_path / "a", steps=2)
    torch.save({"model": {}}, path)
    with raises(SdpipeError, value="line.checkpoint", rule="is damaged"):
        start(tmp_path / "a", steps=2)


def test_a_loss_of_nan_ends_the_training(tmp_path):
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(1, 1)

        def forward(self, x):
            return self.line(x * float("nan")).sum()

    accelerator = make_accelerator("cpu")
    batch = lambda step: (torch.ones(1, 1),)  # noqa: E731
    with raises(NotFiniteError, value="the loss of the bad", rule="is nan at step 25"):
        fit("bad", Bad(), batch, tmp_path, accelerator, steps=30, learning_rate=0.1)


def test_progress_is_reported_from_the_checkpoint_on(tmp_path):
    reports = []
    with pytest.raises(KilledError):
        start(tmp_path / "a", kill_at=24, save_every=0)
    start(tmp_path / "a", steps=26, progress=lambda *report: reports.append(report))
    assert [report[:3] for report in reports] == [("line", done, 26) for done in (24, 25, 26)]
    assert [bool(note) for *_, note in reports[1:]] == [True, True]


def test_periodic_work_waits_for_seconds_and_for_twenty_times_its_duration():
    time = 100.0
    interval = Interval(60, clock=lambda: time)
    assert not interval.is_due()
    time = 160.1
    assert interval.is_due()
    interval.restart(work_seconds=5)
    time += 99
    assert not interval.is_due()
    time += 2
    assert interval.is_due()
    assert Interval(60, now=True).is_due()
    always = Interval(0, clock=lambda: time)
    always.restart(work_seconds=5)
    assert always.is_due()
