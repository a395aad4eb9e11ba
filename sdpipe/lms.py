"""Exact coefficients for the linear multistep method, and diffusers' scheduler with them."""

import math
from collections.abc import Sequence

import torch
from diffusers import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput
from torch import Tensor


def lms_coefficients(sigmas: Sequence[float], order: int) -> list[list[float]]:
    """Computes the exact weight of each of the last `order` derivatives in each step of LMS.

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
    """diffusers' LMSDiscreteScheduler with the coefficients of `lms_coefficients`.

    lms_order: how many derivatives a step combines, unless `step` is given an order.
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

        The first steps of a run have few derivatives and so a low order, wherever it begins.
        LMSDiscreteScheduler goes by the position in the schedule instead: a run that begins in
        the middle takes the first of four coefficients alone, a step 2.3 times too long.
        """
        order = min(self.lms_order if order is None else order, len(self.derivatives) + 1)
        return super().step(model_output, timestep, sample, order, return_dict)
