"""The loop that all parts are trained with: AdamW, a learning rate that falls, checkpoints."""

import csv
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from sdpipe.errors import NotFiniteError

SAVE_EVERY = 60.0  # seconds between checkpoints
LOG_EVERY = 25  # steps


def fit(
    name: str,
    model: nn.Module,
    batch: Callable[[int], tuple[Tensor, ...]],
    folder: Path,
    accelerator: Accelerator,
    *,
    steps: int,
    learning_rate: float,
    warmup: int = 50,
    ema: float | None = None,
    show: Callable[[int, nn.Module], None] | None = None,
) -> None:
    """Takes `steps` gradient steps on the loss that `model(*batch(step))` is.

    The rate rises over `warmup` steps and then falls to nothing along a cosine. With `ema` the
    model ends as the moving average of its weights, of that decay a step. `batch` has to draw its
    random numbers from `step`: then a run that was killed, and starts again with the same folder,
    goes on from its last checkpoint as if nothing had happened. The loss goes to `folder`/loss.csv;
    `show` is called with every checkpoint, with the step and what the model would be if it ended.

    Raises:
        NotFiniteError: the loss is no longer a number.
    """
    path = folder / f"{name}.checkpoint"
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, learning_rate, weight_decay=0.01, fused=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
    parts: dict[str, nn.Module | torch.optim.Optimizer] = {"model": model, "optimizer": optimizer}
    if average is not None:
        parts["average"] = average
    first = _restore(path, parts)
    loss, stepper = accelerator.prepare(model, optimizer)

    begun = saved = time.monotonic()
    bar = tqdm(
        range(first, steps),
        desc=name,
        initial=first,
        total=steps,
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        unit="step",
        disable=not accelerator.is_main_process,
    )
    model.train()
    recent: list[float] = []
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _rate(step, steps, warmup)
        value = loss(*(x.to(accelerator.device) for x in batch(step)))
        stepper.zero_grad(set_to_none=True)
        accelerator.backward(value)
        accelerator.clip_grad_norm_(learning, 1.0)
        stepper.step()
        if average is not None:
            average.update_parameters(model)
        recent.append(value.item())
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            mean = sum(recent) / len(recent)
            if not math.isfinite(mean):
                raise NotFiniteError(
                    f"the loss of the {name} is {mean} at step {step + 1}; take a smaller "
                    "learning rate, and begin again in another folder."
                )
            bar.set_postfix_str(f"loss {mean:.4f}", refresh=False)
            if accelerator.is_main_process:
                _log(folder / "loss.csv", name, step + 1, mean, time.monotonic() - begun)
            recent.clear()
        if time.monotonic() - saved > SAVE_EVERY or step + 1 == steps:
            if accelerator.is_main_process:
                _save(path, parts, step + 1)
                if show is not None:
                    show(step + 1, model if average is None else average.module)
            saved = time.monotonic()
    accelerator.wait_for_everyone()
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    model.eval().requires_grad_(False)


def _rate(step: int, steps: int, warmup: int) -> float:
    """The share of the learning rate that holds at a step."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _restore(path: Path, parts: dict[str, nn.Module | torch.optim.Optimizer]) -> int:
    """Puts a checkpoint back and returns the step to go on with, 0 where there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for key, part in parts.items():
        part.load_state_dict(state[key])
    return int(state["step"])


def _save(path: Path, parts: dict[str, nn.Module | torch.optim.Optimizer], step: int) -> None:
    """Writes a checkpoint under another name, then renames it: a kill never leaves half of one."""
    state: dict[str, object] = {key: part.state_dict() for key, part in parts.items()}
    temporary = path.with_suffix(".partial")
    torch.save({**state, "step": step}, temporary)
    os.replace(temporary, path)


def _log(path: Path, name: str, step: int, loss: float, seconds: float) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["stage", "step", "loss", "seconds"])
        writer.writerow([name, step, f"{loss:.6f}", f"{seconds:.1f}"])
