"""The checks of `sdpipe show` that need no model; they run before torch is imported."""

import math
from collections.abc import Sequence

from sdpipe.errors import UsageError
from sdpipe.guidance import Guidance
from sdpipe.prompt.syntax import parse
from sdpipe.settings import RANDOM_SCHEDULERS, TWO_CALL_SCHEDULERS, Settings
from sdpipe.values import Scale, check_int, format_scale

LAST_TIMESTEP = 999  # of every model of the family
MOST_FRAMES = 999


def check_schedule(names: Sequence[str], steps: int | None, karras: bool) -> None:
    """Checks schedulers and their steps.

    Raises:
        UsageError: a name is unknown, `steps` is out of range, or a scheduler has no Karras sigmas.
    """
    for name in names or (None,):
        Settings(prompt="", scheduler=name, steps=steps, karras=karras)


def check_times(times: Sequence[int]) -> None:
    """Checks timesteps.

    Raises:
        UsageError: the list is empty, or a timestep is out of range.
    """
    if not times:
        raise UsageError("t", "is empty", "use timesteps from 0 to 999, such as 0,250,500")
    for t in times:
        if not 0 <= t <= LAST_TIMESTEP:
            raise UsageError(
                f"t={t}",
                "is out of range",
                f"timesteps go from 0, almost the image, to {LAST_TIMESTEP}, almost noise",
            )


def check_points(points: int) -> None:
    """Checks a number of timesteps above 0. Raises UsageError."""
    check_int("points", points, 1, LAST_TIMESTEP)


def count_calls(steps: int, scheduler: str | None) -> int:
    """The number of U-Net calls that a scheduler makes in `steps` steps."""
    if scheduler in TWO_CALL_SCHEDULERS:
        return 2 * steps - 1
    return steps + (scheduler == "pndm")


def check_at(at: Sequence[int], steps: int | None, scheduler: str | None) -> None:
    """Checks that a run has the steps `at`, as far as the number of its steps is known.

    Raises:
        UsageError: a step is out of range.
    """
    last = math.inf if steps is None else count_calls(steps, scheduler) - 1
    for index in at:
        if not 0 <= index <= last:
            most = "" if steps is None else f" to {last}"
            raise UsageError(f"at={index}", "is out of range", f"steps count from 0{most}")


def check_guidance(g: Scale | None, steps: int | None, scheduler: str | None) -> None:
    """Checks that guidance needs both predictions at every step.

    Raises:
        UsageError: g is 1 or 0, at least at one step.
    """
    total = 2 if steps is None else count_calls(steps, scheduler)
    for i in range(total if g is not None else 0):
        g_t = Guidance(g or 0.0).at(i, total, 0)
        if g_t in (0, 1):
            where = f"is {g_t:g} at step {i}, where it " if isinstance(g, tuple) else ""
            raise UsageError(
                f"g={format_scale(g or 0.0, 'g')}",
                f"{where}uses only the prediction {'with' if g_t else 'without'} the prompt",
                f"use another g, such as {'7.5:1.5' if where else '3 or 7.5'}",
            )


def check_attention(prompt: str, g: Scale | None) -> None:
    """Checks that the attention to words can be shown.

    Raises:
        UsageError: the prompt has no words, or changes over the steps, or g is 0.
    """
    read = parse(prompt)
    if read.is_scheduled:
        raise UsageError(
            "the prompt",
            "changes over the steps, so the positions of its words change, too",
            "use one without [cat:dog:0.5] and [cat|dog]",
        )
    if not any(words.strip() for part in read.at(0, 1) for words, _ in part):
        raise UsageError("the prompt", "has no words", "use one with words")
    first, last = g if isinstance(g, tuple) else (g, g)
    if first is not None and last is not None and min(first, last) <= 0 <= max(first, last):
        raise UsageError(
            f"g={format_scale(g or 0.0, 'g')}",
            "is 0 at a step, where the prompt has no effect"
            if isinstance(g, tuple)
            else "leaves the prompt without effect",
            "use 1 or more",
        )


def check_interpolation(frames: int, seeds: Sequence[int], scheduler: str | None) -> None:
    """Checks an interpolation between two images.

    Raises:
        UsageError: too few or too many frames, more than two seeds, or a scheduler that draws noise
            while the seed changes.
    """
    if not 2 <= frames <= MOST_FRAMES:
        raise UsageError(f"frames={frames}", "is out of range", f"use 2 to {MOST_FRAMES}")
    if len(seeds) > 2:
        raise UsageError(
            f"seeds={','.join(map(str, seeds))}",
            "are more than two",
            "use one for both ends, or one for each",
        )
    for seed in seeds:
        Settings(prompt="", seed=seed)
    if len(set(seeds)) == 2 and scheduler in RANDOM_SCHEDULERS:
        raise UsageError(
            f"scheduler={scheduler!r}",
            "draws noise from the seed at every step, and there is no seed between two seeds",
            "use another scheduler, or one seed for both ends",
        )
