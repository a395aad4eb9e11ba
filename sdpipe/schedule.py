"""Schedulers by name, and the exact coefficients of the linear multistep method."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput
from torch import Tensor

from sdpipe.settings import KARRAS_SCHEDULERS


def lms_coefficients(sigmas: Sequence[float], order: int) -> list[list[float]]:
    """What each of the last `order` derivatives counts in each step of LMS, exactly.

    Row i belongs to the step from sigmas[i] to sigmas[i + 1] and has min(i + 1, order) entries,
    the newest first:

        c_j = integral from sigmas[i] to sigmas[i + 1] of
              product over k != j of (s - sigmas[i - k]) / (sigmas[i - j] - sigmas[i - k]) ds

    the integral of a Lagrange polynomial (Adams-Bashforth; Zhang and Chen 2022, equation 14). Up
    to order 4 it is a cubic, which two-point Gauss-Legendre quadrature integrates without error.
    `sigmas` is one longer than the number of steps; each row sums to sigmas[i + 1] - sigmas[i].
    """
    table = []
    for i in range(len(sigmas) - 1):
        past = [sigmas[i - k] for k in range(min(i + 1, order))]
        half, middle = (sigmas[i + 1] - sigmas[i]) / 2, (sigmas[i + 1] + sigmas[i]) / 2
        nodes = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
        table.append([half * sum(_lagrange(past, j, s) for s in nodes) for j in range(len(past))])
    return table


def _lagrange(points: Sequence[float], j: int, s: float) -> float:
    """The polynomial through 1 at points[j] and 0 at the others, at s."""
    return math.prod((s - p) / (points[j] - p) for k, p in enumerate(points) if k != j)


class ExactLMSScheduler(LMSDiscreteScheduler):
    """diffusers' LMSDiscreteScheduler with its coefficients from `lms_coefficients`.

    `lms_order` is the number of derivatives that a step combines, where `step` is given none.
    """

    lms_order = 4

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Places the steps, as LMSDiscreteScheduler does."""
        super().set_timesteps(num_inference_steps, device)
        self._tables: dict[int, list[list[float]]] = {}

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """The coefficient of derivative `current_order` in step t of a method of this order."""
        if order not in self._tables:
            self._tables[order] = lms_coefficients(self.sigmas.double().tolist(), order)
        return self._tables[order][t][current_order]

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        order: int | None = None,
        return_dict: bool = True,
    ) -> LMSDiscreteSchedulerOutput | tuple[Tensor, ...]:
        """One step, as LMSDiscreteScheduler takes it; `order` defaults to `lms_order`.

        The first steps of a run have few derivatives, and so a low order, wherever it begins. Not
        so in LMSDiscreteScheduler: it goes by the place in the schedule, and a run that begins in
        the middle takes the first of four coefficients alone, which is 2.3 times too far.
        """
        order = min(self.lms_order if order is None else order, len(self.derivatives) + 1)
        return super().step(model_output, timestep, sample, order, return_dict)


CLASSES: Mapping[str, type[SchedulerMixin]] = {
    "lms": ExactLMSScheduler,
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}

# The defaults of these two in diffusers are for pixels: clipped to [-1, 1], or a start with
# Runge-Kutta steps. A model's own config for the class goes before.
FOR_LATENTS: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "pndm": {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1},
}


def make_scheduler(
    name: str,
    config: Mapping[str, Any],
    steps: int,
    *,
    device: torch.device | str = "cpu",
    karras: bool = False,
    lms_order: int | None = None,
    skip: int = 0,
) -> SchedulerMixin:
    """A scheduler for one run, its steps placed; it keeps state, so the next run makes its own.

    `name` is one of `CLASSES`, `config` the model's scheduler config, of whatever class. The run
    leaves out the first `skip` of the steps, for it begins with a picture.
    """
    kind = CLASSES[name]
    config = {**FOR_LATENTS.get(name, {}), **config}
    if name == "pndm" and skip:
        config["skip_prk_steps"] = True  # these have to begin at the beginning
    if name in KARRAS_SCHEDULERS:
        config["use_karras_sigmas"] = karras
    scheduler = kind.from_config(config)
    if lms_order is not None:
        scheduler.lms_order = lms_order
    scheduler.set_timesteps(steps, device=device)
    if hasattr(scheduler, "set_begin_index"):  # spares a search for the first timestep
        scheduler.set_begin_index(skip * scheduler.order)
    elif skip:
        scheduler.timesteps = _last_timesteps(scheduler, skip)
    return scheduler


def _last_timesteps(scheduler: SchedulerMixin, skip: int) -> Tensor:
    """The timesteps of DDIM and PNDM without those of the first steps.

    PNDM takes its first step twice, from the same latents: to the second timestep, where it looks
    at the noise, and again with the mean of both. So its second timestep is there twice, also where
    the run begins late. StableDiffusionImg2ImgPipeline cuts that off, and PNDM then takes the
    latents for less noisy than they are.
    """
    t = scheduler.timesteps
    if not isinstance(scheduler, PNDMScheduler):
        return t[skip:]
    once = torch.cat([t[:1], t[2:]])[skip:]
    return torch.cat([once[:2], once[1:]])
