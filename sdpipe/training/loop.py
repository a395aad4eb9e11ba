"""The loop that all parts are trained with: a learning rate that falls, checkpoints."""

import csv
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from sdpipe.errors import NotFiniteError, SdpipeError
from sdpipe.training.optimizer import make_optimizers
from sdpipe.training.run_folder import cannot_write, written

SAVE_EVERY = 60.0  # seconds between checkpoints
SHARE = 20  # of the time of a checkpoint passes before the next, at least
LOG_EVERY = 25  # steps

Parts = dict[str, nn.Module | torch.optim.Optimizer]


def fit(
    name: str,
    model: nn.Module,
    batch: Callable[[int], tuple[Tensor, ...]],
    folder: Path,
    accelerator: Accelerator,
    *,
    steps: int,
    learning_rate: float,
    muon_rate: float = 0.0,
    warmup: int = 50,
    ema: float | None = None,
    show: Callable[[int, nn.Module], None] | None = None,
) -> None:
    """Takes `steps` gradient steps on the loss that `model(*batch(step))` is.

    The rates, see `make_optimizers`, rise over `warmup` steps and then fall to nothing along a
    cosine. With `ema` the model ends as the moving average of its weights, of that decay a step.
    `batch` has to draw its random numbers from `step`: then a run that was killed, and starts again
    with the same folder, goes on from its last checkpoint as if nothing had happened. The loss goes
    to `folder`/loss.csv; `show` is called with every checkpoint, with the step and what the model
    would be if it ended.

    Several processes take each step together: the gradient is the mean of theirs. The first of
    them writes, and shows.

    Raises:
        NotFiniteError: the loss is no longer a number.
        SdpipeError: a checkpoint is damaged, or cannot be written.
    """
    path = folder / f"{name}.checkpoint"
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizers = make_optimizers(model, learning_rate, muon_rate)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers.values()]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
    parts: Parts = {"model": model, **optimizers}
    if average is not None:
        parts["average"] = average
    first, spent = _restore(path, parts)
    first_here = accelerator.is_main_process
    if first_here:
        _cut_log(folder / "loss.csv", name, first)
    accelerator.wait_for_everyone()  # what is read above, the first process writes below
    loss, *steppers = accelerator.prepare(model, *optimizers.values())

    begun = time.monotonic() - spent
    save_at = time.monotonic() + SAVE_EVERY
    bar = tqdm(
        range(first, steps),
        desc=name,
        initial=first,
        total=steps,
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        unit="step",
        disable=not first_here,
    )
    model.train()
    recent: list[Tensor] = []
    for step in bar:
        for optimizer, rate in zip(optimizers.values(), rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * _rate(step, steps, warmup)
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
                    f"the loss of the {name} is {mean} at step {step + 1}; take a smaller "
                    "learning rate, and begin again in another folder."
                )
            bar.set_postfix_str(f"loss {mean:.4f}", refresh=False)
            if first_here:
                _log(folder / "loss.csv", name, step + 1, mean, time.monotonic() - begun)
            recent.clear()
        if first_here and (time.monotonic() > save_at or step + 1 == steps):
            saving = time.monotonic()
            _save(path, parts, step + 1, saving - begun)
            saved = time.monotonic()
            save_at = saved + max(SAVE_EVERY, SHARE * (saved - saving))
            if show is not None:
                show(step + 1, model if average is None else average.module)
    accelerator.wait_for_everyone()
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    model.eval().requires_grad_(False)


def _rate(step: int, steps: int, warmup: int) -> float:
    """The share of the learning rate that holds at a step."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _restore(path: Path, parts: Parts) -> tuple[int, float]:
    """Puts a checkpoint back and returns the step to go on with, and the seconds that it took.

    Both are 0 where there is none.
    """
    if not path.exists():
        return 0, 0.0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(state[key])
        return int(state["step"]), float(state["seconds"])
    except Exception as error:  # there are many ways to read what is damaged
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise SdpipeError(
            f"the checkpoint {path} is damaged ({reason}). Delete it, and the same command begins "
            "this part again; those before it are kept."
        ) from error


def _save(path: Path, parts: Parts, step: int, seconds: float) -> None:
    """Writes a checkpoint under another name, then renames it: a kill never leaves half of one."""
    state: dict[str, object] = {key: part.state_dict() for key, part in parts.items()}
    with written(path) as file:
        torch.save({**state, "step": step, "seconds": seconds}, file)


def _log(path: Path, name: str, step: int, loss: float, seconds: float) -> None:
    new = not path.exists()
    try:
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["stage", "step", "loss", "seconds"])
            writer.writerow([name, step, f"{loss:.6f}", f"{seconds:.1f}"])
    except OSError as error:
        raise cannot_write(path, error) from error


def _cut_log(path: Path, name: str, step: int) -> None:
    """Takes out what was logged after the checkpoint that a run goes on from: it comes again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [line for line in lines if line.endswith("\n") and line.count(",") == 3]
    kept = [r for r in rows if not (r.startswith(f"{name},") and int(r.split(",")[1]) > step)]
    if kept != lines:
        with written(path) as file:
            file.write("".join(kept).encode())
