"""What diffusers' schedulers know, as the loop asks for it, and exact coefficients for LMS.

schedule = make_schedule("lms", config, steps=50)
for i, t in enumerate(schedule.timesteps):
    x_in = schedule.scale_input(x_t, i)
    x_t = schedule.step(output, i, x_t)

Over 300 lines, since a fifth of them makes LMS exact, one scheduler among the others.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput
from torch import Tensor

from sdpipe.errors import UsageError
from sdpipe.runtime.philox import DrawFrom, Philox
from sdpipe.settings import KARRAS_SCHEDULERS

if TYPE_CHECKING:
    from sdpipe.settings import ResolvedSettings


@dataclass(frozen=True, eq=False)
class Schedule:
    """The timesteps and noise levels of one run, and the scheduler's rule for a step.

    scheduler: diffusers' scheduler, its timesteps set. It keeps state: one run, one schedule.
    timesteps: those that the run takes, (len(schedule),); high is noisy. LMS has floats.
    sigmas: the noise level of each step's input and of the last step's output:
        len(sigmas) == len(schedule) + 1.
    variance_exploding: x_t is x_0 + sigma * eps; otherwise x_t keeps about unit variance.
    draws_noise: a step of this scheduler takes generators, for the noise that it may add.
    takes_eta: a step takes `eta`.
    eta: the noise that a step of DDIM or TCD adds, as a share of all; None is 0, as in diffusers'
        pipeline.
    """

    scheduler: SchedulerMixin
    timesteps: Tensor
    sigmas: Sequence[float]
    variance_exploding: bool
    draws_noise: bool
    takes_eta: bool
    eta: float | None = None

    @classmethod
    def of(cls, scheduler: "SchedulerMixin | Schedule") -> "Schedule":
        """The schedule of a scheduler, from its `begin_index` on; a `Schedule` stays as it is."""
        if isinstance(scheduler, Schedule):
            return scheduler
        first = getattr(scheduler, "begin_index", None) or 0
        options = inspect.signature(scheduler.step).parameters
        return cls(
            scheduler,
            scheduler.timesteps[first:],
            _noise_levels(scheduler, first),
            variance_exploding=float(scheduler.init_noise_sigma) > 1,
            draws_noise="generator" in options,
            takes_eta="eta" in options,
        )

    def __len__(self) -> int:
        """The number of U-Net calls; Heun takes two a step."""
        return len(self.timesteps)

    @property
    def prediction_type(self) -> str:
        """What the U-Net is expected to predict: "epsilon", "v_prediction" or "sample"."""
        return str(self.scheduler.config.prediction_type)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the starting noise."""
        return float(self.scheduler.init_noise_sigma)

    def scale_input(self, x_t: Tensor, i: int) -> Tensor:
        """x_t (B, C, h, w), scaled to the variance that the U-Net was trained on."""
        return self.scheduler.scale_model_input(x_t, self.timesteps[i])

    def step(
        self,
        output: Tensor,
        i: int,
        x_t: Tensor,
        generators: Sequence[torch.Generator | Philox] = (),
    ) -> Tensor:
        """x_t after step i, from the U-Net's output at step i; both (B, C, h, w).

        generators: one an image, for schedulers that add noise.
        """
        noise: dict[str, Any] = {"eta": self.eta or 0.0} if self.takes_eta else {}
        if self.draws_noise:
            noise["generator"] = [g for g in generators if isinstance(g, torch.Generator)] or None
        with DrawFrom(generators):
            return self.scheduler.step(output, self.timesteps[i], x_t, **noise).prev_sample

    def noised(self, x_0: Tensor, eps: Tensor, sigma: float) -> Tensor:
        """Clean latents with noise of level sigma, in this scheduler's scale, (B, C, h, w).

        At an infinite sigma, that of zero terminal SNR, nothing is left but the noise.

        x_0 + sigma * eps; unless the variance explodes divided by sqrt(1 + sigma^2), which is
        `latents.add_noise` with alpha_bar = 1 / (1 + sigma^2).
        """
        if math.isinf(sigma):
            return eps
        x_t = x_0 + sigma * eps
        return x_t if self.variance_exploding else x_t / (1 + sigma**2) ** 0.5


def _noise_levels(scheduler: SchedulerMixin, first: int) -> list[float]:
    if isinstance(scheduler, KDPM2DiscreteScheduler | KDPM2AncestralDiscreteScheduler):
        # Every second call is between two noise levels; DPM2 and DPM2 a count these otherwise.
        offset = int(isinstance(scheduler, KDPM2DiscreteScheduler))
        sigmas = scheduler.sigmas[: len(scheduler.timesteps) + 1].clone()
        sigmas[1::2] = scheduler.sigmas_interpol[offset::2][: len(sigmas) // 2]
        return [float(sigma) for sigma in sigmas[first:]]
    if hasattr(scheduler, "sigmas"):
        return [float(sigma) for sigma in scheduler.sigmas[first:]]
    alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps[first:].cpu()]
    match scheduler:
        case LCMScheduler() | DDPMScheduler():  # the last step returns x0
            last = torch.ones(1)
        case TCDScheduler():
            last = scheduler.alphas_cumprod[:1]
        case _:
            last = scheduler.final_alpha_cumprod.view(1)
    alpha_bar = torch.cat([alpha_bar, last])
    return [float(sigma) for sigma in ((1 - alpha_bar) / alpha_bar).sqrt()]


def alpha_bars(config: Mapping[str, Any]) -> Tensor:
    """The signal's share of the variance at each training timestep, (T,), from a model's config."""
    return make_scheduler("ddim", config, 1).alphas_cumprod


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


CLASSES: Mapping[str, type[SchedulerMixin]] = {
    "lms": ExactLMSScheduler,
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
    "dpm++_2m_sde": DPMSolverMultistepScheduler,
    "dpm2": KDPM2DiscreteScheduler,
    "dpm2_a": KDPM2AncestralDiscreteScheduler,
    "ddpm": DDPMScheduler,
    "deis": DEISMultistepScheduler,
}

# diffusers' defaults for these are meant for pixels: clipping to [-1, 1], or a start with
# Runge-Kutta steps. A model's own config goes first.
FOR_LATENTS: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "pndm": {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1},
    "ddpm": {"clip_sample": False, "steps_offset": 1},
}

# What makes the scheduler; it goes before a model's own config, which may be of another class.
FIXED: Mapping[str, Mapping[str, Any]] = {
    "dpm++_2m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_type": "midpoint"},
    "deis": {"algorithm_type": "deis", "solver_type": "logrho"},
}


def make_scheduler(
    name: str,
    config: Mapping[str, Any],
    steps: int,
    *,
    device: torch.device | str = "cpu",
    karras: bool = False,
    spacing: str | None = None,
    zero_snr: bool = False,
    lms_order: int | None = None,
    skip: int = 0,
) -> SchedulerMixin:
    """Makes diffusers' scheduler for one run, its timesteps set; it keeps state.

    name: one of `CLASSES`. config: the model's scheduler config, of any class.
    skip: how many of the first steps are left out, where a run begins with an image.
    """
    kind = CLASSES[name]
    config = {**FOR_LATENTS.get(name, {}), **config, **FIXED.get(name, {})}
    if name == "pndm" and skip:
        config["skip_prk_steps"] = True  # these have to begin at the beginning
    if name in KARRAS_SCHEDULERS:
        config["use_karras_sigmas"] = karras
    if spacing is not None:
        config["timestep_spacing"] = spacing
    if zero_snr:
        config["rescale_betas_zero_snr"] = True
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
    """The timesteps of DDIM, DDPM or PNDM without those of the first `skip` steps.

    PNDM takes its first step twice from the same latents: to the second timestep, where it
    predicts again, and then with the mean of both predictions. So the second timestep is in its
    list twice, also where the run begins late. StableDiffusionImg2ImgPipeline cuts the repetition
    off, and PNDM then takes the latents to be less noisy than they are.
    """
    t = scheduler.timesteps
    if not isinstance(scheduler, PNDMScheduler):
        return t[skip:]
    once = torch.cat([t[:1], t[2:]])[skip:]
    return torch.cat([once[:2], once[1:]])


def make_schedule(
    name: str,
    config: Mapping[str, Any],
    steps: int,
    *,
    eta: float | None = None,
    **options: Any,
) -> Schedule:
    """A `Schedule` of a new scheduler; the other arguments are those of `make_scheduler`."""
    return replace(Schedule.of(make_scheduler(name, config, steps, **options)), eta=eta)


def schedule_for(
    settings: "ResolvedSettings",
    config: Mapping[str, Any],
    device: torch.device | str,
    strength: float | None = None,
) -> Schedule:
    """The schedule of one pass with these settings, for a model's scheduler config.

    strength: the share of the steps that is taken, the last ones; None is all.

    Raises:
        UsageError: the first of all steps would begin without noise, or zero_snr is for a model
            that predicts the noise.
    """
    if settings.zero_snr and config.get("prediction_type", "epsilon") == "epsilon":
        raise UsageError(
            "zero_snr",
            "leaves nothing but noise at the first step, and this model predicts the noise",
            "leave it out, or take a model that predicts v",
        )
    skip = settings.steps - settings.num_steps_taken(strength)
    schedule = make_schedule(
        settings.scheduler,
        config,
        settings.steps,
        skip=skip,
        device=device,
        karras=settings.karras,
        spacing=settings.spacing,
        zero_snr=settings.zero_snr,
        lms_order=settings.lms_order,
        eta=settings.eta,
    )
    if not skip and schedule.sigmas[0] < 1:
        raise UsageError(
            f"steps={settings.steps} with the scheduler {settings.scheduler}",
            f"would start at sigma {schedule.sigmas[0]:.2g}, from an image and not from noise",
            "use 2 steps or more, or spacing trailing",
        )
    return schedule
