"""`fit`, the loop that trains every part: learning rates, a moving average, checkpoints, a log."""

import csv
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sdpipe.errors import NotFiniteError, SdpipeError
from sdpipe.io.files import atomic_write, write_error
from sdpipe.training.optimizer import make_optimizers
from sdpipe.training.run_folder import RESUME

LOG_EVERY = 25  # steps
PATIENCE = 20  # `Interval` waits at least so many times what the work took

Parts = dict[str, nn.Module | torch.optim.Optimizer]


class Progress(Protocol):
    """Reports the progress of a task."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps are done; `note` is the latest loss, if any."""


def no_progress(task: str, done: int, total: int, note: str = "") -> None:
    """Ignores progress."""


class Interval:
    """Tells when periodic work is due: so many seconds after the last, and after 20 times what it
    took, so that the work takes 5 % of the time at most. At 0 seconds it is always due.
    """

    def __init__(
        self,
        seconds: float,
        *,
        now: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now`: it is due at once."""
        self.seconds, self.clock = seconds, clock
        self.due_at = 0.0 if now else clock() + seconds

    def is_due(self) -> bool:
        """Whether the work is due."""
        return not self.seconds or self.clock() > self.due_at

    def restart(self, work_seconds: float) -> None:
        """Notes that the work was just done, and how long it took."""
        self.due_at = self.clock() + max(self.seconds, PATIENCE * work_seconds)


def fit(
    name: str,
    model: nn.Module,
    batch: Callable[[int], tuple[Tensor, ...]],
    folder: Path,
    accelerator: Accelerator,
    *,
    steps: int,
    learning_rate: float,
    muon_learning_rate: float = 0.0,
    warmup_steps: int = 50,
    ema_decay: float | None = None,
    on_checkpoint: Callable[[int, nn.Module], None] | None = None,
    save_every: float = 60.0,
    progress: Progress = no_progress,
) -> None:
    """Takes `steps` gradient steps on the loss `model(*batch(step))`.

    batch: draws its random numbers from `step`. Then a run that was killed and starts again with
        the same folder continues from its last checkpoint to the same bits.
    folder: receives NAME.checkpoint and loss.csv.
    learning_rate, muon_learning_rate: see `make_optimizers`. They rise linearly over `warmup_steps`
        and fall to 0 along a cosine.
    ema_decay: if given, the model ends as the moving average of its weights with this decay a step.
    on_checkpoint: is called after each checkpoint, with the step and the model, averaged if it has
        an average.
    save_every: seconds between checkpoints, at least; 0 writes one after every step.

    Several processes take each step together: the gradient is the mean of theirs. Only the first
    writes and reports.

    Raises:
        NotFiniteError: the loss is NaN or infinite.
        SdpipeError: a checkpoint is damaged, or cannot be written.
    """
    path = folder / f"{name}.checkpoint"
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizers = make_optimizers(model, learning_rate, muon_learning_rate)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers.values()]
    average = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)) if ema_decay else None
    )
    parts: Parts = {"model": model, **optimizers}
    if average is not None:
        parts["average"] = average
    first, seconds_before = _restore(path, parts)
    is_first = accelerator.is_main_process
    if is_first:
        _truncate_log(folder / "loss.csv", name, first)
    accelerator.wait_for_everyone()  # the first process writes below what is read above
    loss, *steppers = accelerator.prepare(model, *optimizers.values())

    begun, checkpoints = time.monotonic() - seconds_before, Interval(save_every)
    model.train()
    recent: list[Tensor] = []
    note = ""
    if is_first and first < steps:
        progress(name, first, steps)
    for step in range(first, steps):
        for optimizer, rate in zip(optimizers.values(), rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(step, steps, warmup_steps)
        value = loss(*(x.to(accelerator.device) for x in batch(step)))
        model.zero_grad(set_to_none=True)
        accelerator.backward(value)
        accelerator.clip_grad_norm_(learning, 1.0)
        for stepper in steppers:
            stepper.step()
        if average is not None:
            average.update_parameters(model)
        recent.append(value.detach())
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            mean = float(accelerator.reduce(torch.stack(recent).mean(), "mean"))
            if not math.isfinite(mean):
                raise NotFiniteError(
                    f"the loss of the {name}",
                    f"is {mean} at step {step + 1}",
                    "take a smaller learning rate, and start again in another folder",
                )
            note = f"loss {mean:.4f}"
            if is_first:
                _log(folder / "loss.csv", name, step + 1, mean, time.monotonic() - begun)
            recent.clear()
        if is_first:
            progress(name, step + 1, steps, note)
        if is_first and (checkpoints.is_due() or step + 1 == steps):
            saving = time.monotonic()
            _save(path, parts, step + 1, saving - begun)
            checkpoints.restart(time.monotonic() - saving)
            if on_checkpoint is not None:
                on_checkpoint(step + 1, model if average is None else average.module)
    accelerator.wait_for_everyone()
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    model.eval().requires_grad_(False)


def _schedule(step: int, steps: int, warmup_steps: int) -> float:
    """The factor of the learning rate at a step: (step + 1) / warmup_steps, then a half cosine.

    diffusers' `get_cosine_schedule_with_warmup` has step / warmup_steps, 0 at the first step.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1)))


def _restore(path: Path, parts: Parts) -> tuple[int, float]:
    """Loads a checkpoint; returns its step and the seconds before it, or 0 and 0 without one."""
    if not path.exists():
        return 0, 0.0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(state[key])
        return int(state["step"]), float(state["seconds"])
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise SdpipeError(
            f"the checkpoint {path}",
            f"is damaged ({reason})",
            "delete it, and the same command repeats this stage; those before it are kept",
        ) from error


def _save(path: Path, parts: Parts, step: int, seconds: float) -> None:
    """Writes a checkpoint."""
    state: dict[str, object] = {key: part.state_dict() for key, part in parts.items()}
    with atomic_write(path, RESUME) as file:
        torch.save({**state, "step": step, "seconds": seconds}, file)


def _log(path: Path, name: str, step: int, loss: float, seconds: float) -> None:
    """Appends a row to the log."""
    new = not path.exists()
    try:
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["stage", "step", "loss", "seconds"])
            writer.writerow([name, step, f"{loss:.6f}", f"{seconds:.1f}"])
    except OSError as error:
        raise write_error(path, error, RESUME) from error


def _truncate_log(path: Path, name: str, step: int) -> None:
    """Removes rows of a stage after the step of its checkpoint: they will be written again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [line for line in lines if line.endswith("\n") and line.count(",") == 3]
    kept = [r for r in rows if not (r.startswith(f"{name},") and int(r.split(",")[1]) > step)]
    if kept != lines:
        with atomic_write(path, RESUME) as file:
            file.write("".join(kept).encode())
