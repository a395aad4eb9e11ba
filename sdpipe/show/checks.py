"""What `sdpipe show` refuses, before torch is imported or anything is loaded."""

import math
from collections.abc import Sequence

from sdpipe.errors import UsageError
from sdpipe.guidance import Guidance
from sdpipe.prompt.syntax import parse
from sdpipe.settings import Settings
from sdpipe.values import Scale, format_scale

LAST_TIMESTEP = 999  # of every model of the family
MOST_FRAMES = 999


def check_schedule(names: Sequence[str], steps: int | None, karras: bool) -> None:
    """Refuses what no scheduler can do, without loading anything.

    Raises:
        UsageError: an unknown name, too few or too many steps, no Karras noise levels.
    """
    for name in names or (None,):
        Settings(prompt="", scheduler=name, steps=steps, karras=karras)


def check_times(times: Sequence[int]) -> None:
    """Refuses timesteps that no model was trained on.

    Raises:
        UsageError: one is out of range, or there are none.
    """
    if not times:
        raise UsageError("t is empty; give timesteps from 0 to 999, such as 0,250,500.")
    for t in times:
        if not 0 <= t <= LAST_TIMESTEP:
            raise UsageError(
                f"t={t} is out of range: timesteps go from 0, nearly the picture, to "
                f"{LAST_TIMESTEP}, nearly noise."
            )


def calls(steps: int, scheduler: str | None) -> int:
    """How often a scheduler calls the U-Net in so many steps."""
    return {"heun": 2 * steps - 1, "pndm": steps + 1}.get(scheduler or "", steps)


def check_at(at: Sequence[int], steps: int | None, scheduler: str | None) -> None:
    """Refuses steps that a run does not have; as far as it is known how many it has.

    Raises:
        UsageError: one is out of range.
    """
    last = math.inf if steps is None else calls(steps, scheduler) - 1
    for index in at:
        if not 0 <= index <= last:
            most = "" if steps is None else f" to {last}"
            raise UsageError(f"at={index} is out of range: steps are counted from 0{most}.")


def check_guidance(g: Scale | None, steps: int | None, scheduler: str | None) -> None:
    """Refuses scales that make one of the two predictions needless, if only at one step.

    Raises:
        UsageError: g is 1 or 0.
    """
    total = 2 if steps is None else calls(steps, scheduler)
    for i in range(total if g is not None else 0):
        g_t = Guidance(g or 0.0).at(i, total, 0)
        if g_t in (0, 1):
            where = f" comes to {g_t:g} on its way, which" if isinstance(g, tuple) else ""
            raise UsageError(
                f"g={format_scale(g or 0.0, 'g')}{where} takes one prediction alone, "
                f"{'with' if g_t else 'without'} the prompt: there is nothing to compare; take "
                f"another g, such as {'7.5:1.5' if where else '3 or 7.5'}."
            )


def check_attention(prompt: str, g: Scale | None) -> None:
    """Refuses what gives no words to look at.

    Raises:
        UsageError: a prompt without words, or with changing ones, or g 0.
    """
    read = parse(prompt)
    if read.is_scheduled:
        raise UsageError(
            "the prompt changes over the steps, so its words have no places of their own; take one "
            "without [cat:dog:0.5] and [cat|dog]."
        )
    if not any(words.strip() for part in read.at(0, 1) for words, _ in part):
        raise UsageError("the prompt is empty, so no word acts anywhere; give it some words.")
    first, last = g if isinstance(g, tuple) else (g, g)
    if first is not None and last is not None and min(first, last) <= 0 <= max(first, last):
        what = f"g={format_scale(g, 'g')} comes to 0, which" if isinstance(g, tuple) else "g=0"
        raise UsageError(
            f"{what} does not listen to the prompt; take 1 for the prompt alone, or more."
        )


def check_way(frames: int, seeds: Sequence[int], scheduler: str | None) -> None:
    """Refuses what makes no way between two pictures.

    Raises:
        UsageError: too few frames, a wrong number of seeds, or a scheduler with noise of its own.
    """
    if not 2 <= frames <= MOST_FRAMES:
        raise UsageError(f"frames={frames} is out of range: 2, both ends alone, to {MOST_FRAMES}.")
    if len(seeds) > 2:
        raise UsageError(
            f"seeds={','.join(map(str, seeds))} are {len(seeds)}; give one for both ends, or two."
        )
    for seed in seeds:
        Settings(prompt="", seed=seed)
    if len(set(seeds)) == 2 and scheduler == "euler_a":
        raise UsageError(
            "scheduler='euler_a' draws noise at every step from the picture's seed, and there is "
            "none between two seeds; take another scheduler, or one seed for both ends."
        )
