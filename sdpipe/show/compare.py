"""Compares the loop with diffusers' StableDiffusionPipeline, step by step.

Both draw from the same weights, one after the other, with the same noise and settings, so the
weights are in memory once. torch and diffusers are imported when something is drawn.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdpipe.errors import UsageError
from sdpipe.io.pixels import Difference, compare_pixels
from sdpipe.runtime.device import dtype_name
from sdpipe.settings import DEFAULTS, ResolvedSettings
from sdpipe.show import style
from sdpipe.show.reference import check_guidance, check_length, draw_with_diffusers, plain_text
from sdpipe.show.style import MARGIN, WIDTH, Sheet
from sdpipe.values import format_scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from sdpipe.pipeline import Pipeline

OnStep = Callable[[int, int], object]
"""Called with the number of steps that are done, of both pipelines, and of all."""


@dataclass(frozen=True)
class Tolerance:
    """The differences that are allowed.

    relative: of the latents after any step, the largest difference divided by the largest value.
    levels: of the images, the largest difference of two 8-bit values.
    """

    relative: float
    levels: int


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(1e-4, 1),
    "float16": Tolerance(0.05, 32),
    "bfloat16": Tolerance(0.25, 128),
}
"""By dtype, for any device. In 16 bits diffusers rounds the latents after every step and the loop
does not, so both differ from the first step, and how far depends on the solver. Measured on the
built-in model: in bfloat16, with all schedulers at g 1, 3 and 7.5, up to 0.12 and 62 levels (PNDM;
others 0.05 and 11); in float16, with LMS alone, a seventh of that. The tolerance is twice that:
too wide for small faults, which float32 shows."""


@dataclass(frozen=True)
class StepError:
    """The difference of the latents after one step.

    timestep, sigma: of the step's input. absolute: the largest difference of two values.
    relative: that divided by the largest value of diffusers' latents.
    """

    index: int
    timestep: float
    sigma: float
    absolute: float
    relative: float


@dataclass(frozen=True)
class Comparison:
    """The differences between both ways to draw an image.

    settings: of the image. model: name, revision and variant.
    notes: the assumptions that make both comparable.
    """

    settings: ResolvedSettings
    model: Mapping[str, Any]
    device: str
    dtype: str
    steps: list[StepError]
    image: Difference
    tolerance: Tolerance
    notes: list[str]

    @property
    def worst(self) -> StepError:
        """The step with the largest difference; NaN counts as the largest."""
        return max(self.steps, key=lambda error: (error.relative != error.relative, error.relative))

    @property
    def passed(self) -> bool:
        """Whether all differences are within the tolerance."""
        close = self.worst.relative <= self.tolerance.relative  # False for NaN
        return close and self.image.largest <= self.tolerance.levels

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {
            "passed": self.passed,
            "tolerance": {"relative": self.tolerance.relative, "levels": self.tolerance.levels},
            "largest": {"relative": self.worst.relative, "step": self.worst.index},
            "image": {
                "largest": self.image.largest,
                "mean": self.image.mean,
                "psnr": self.image.psnr,
            },
            "steps": [vars(error) for error in self.steps],
            "notes": self.notes,
            "model": dict(self.model),
            "settings": self.settings.to_dict(),
            "device": self.device,
            "dtype": self.dtype,
        }

    def __str__(self) -> str:
        lines = [self.about, *(f"  {note}" for note in self.notes), ""]
        lines.append(
            f"{'step':>4}  {'timestep':>8}  {'sigma':>7}  {'relative':>8}  {'absolute':>8}"
        )
        lines += [
            f"{step.index:>4}  {step.timestep:>8.1f}  {step.sigma:>7.3f}  {step.relative:>8.1e}  "
            f"{step.absolute:>8.1e}"
            for step in self.steps
        ]
        return "\n".join([*lines, "", *self.verdict])

    @property
    def about(self) -> str:
        """The model and settings, in one line."""
        s = self.settings
        karras = " with Karras noise levels" if s.karras else ""
        rescale = f" rescaled by {s.guidance_rescale:g}" if s.guidance_rescale else ""
        return (
            f"{self.model['name']}, {s.width} x {s.height}, seed {s.seed}, "
            f"g {format_scale(s.g, 'g')}{rescale}, {s.steps} steps of {s.scheduler}{karras}, "
            f"{self.dtype} on {self.device}"
        )

    @property
    def verdict(self) -> list[str]:
        """The result: two lines and a word."""
        relative, levels, worst = self.tolerance.relative, self.tolerance.levels, self.worst
        apart = (
            "identical after every step"
            if worst.relative == 0
            else f"largest relative difference {worst.relative:.1e}, after step {worst.index}"
        )
        return [
            f"latents: {apart}; allowed: {relative:g}",
            f"image: {self.image}; allowed: {levels}",
            "passed" if self.passed else "failed",
        ]


def compare(
    pipe: "Pipeline",
    prompt: str,
    *,
    tolerance: float | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Comparison:
    """Draws an image with the loop and with diffusers' pipeline, and measures the differences.

    tolerance: relative, of the latents after any step; None uses that of the pipeline's dtype.
    settings: those of `Pipeline.generate` that diffusers' pipeline supports: for one image, from
        noise, without guidance_interval and clip_skip.

    Raises:
        UsageError: a value breaks its rule, or diffusers cannot draw what it asks for.
        NotFiniteError: the loop produced NaN or infinity.
    """
    parts = pipe.components
    g = settings.get("g")
    default = parts.defaults.get("g", DEFAULTS["g"])
    check_guidance(default if g is None else g, settings.get("guidance_rescale", 0.0))
    if settings.get("guidance_interval") is not None:
        raise UsageError("guidance_interval", "is not part of diffusers' pipeline", "leave it out")
    for text in (prompt, settings.get("negative_prompt", "")):
        plain_text(text)
        check_length(parts, text)
    dtype = dtype_name(parts.dtype)
    allowed = TOLERANCES[dtype]
    if tolerance is not None:
        allowed = Tolerance(tolerance, allowed.levels)

    def report(done: int, total: int) -> None:
        if on_step is not None:
            on_step(done, 2 * total)

    result = pipe.generate(
        prompt, save_int=True, on_step=lambda step: report(step.index + 1, step.total), **settings
    )
    ours, run = result.steps, result.settings[0]
    errors: list[StepError] = []

    def measure(latents: "Tensor") -> None:
        step = ours[len(errors)]
        theirs = latents.float()
        absolute = float((step.latents - theirs).abs().max())
        relative = absolute / float(theirs.abs().max())
        errors.append(StepError(step.index, step.timestep, step.sigma, absolute, relative))
        report(len(ours) + len(errors), len(ours))

    image, notes = draw_with_diffusers(parts, run, measure)
    identity = {name: getattr(parts.model, name) for name in ("name", "revision", "variant")}
    difference = compare_pixels(result.images[0], image)
    return Comparison(run, identity, str(parts.device), dtype, errors, difference, allowed, notes)


def check_tolerance(tolerance: float | None) -> None:
    """Checks a tolerance.

    Raises:
        UsageError: it is negative, infinite or not a number.
    """
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise UsageError(
            f"tolerance={tolerance:g}",
            "is out of range",
            "use 0, for identical latents, or more, such as 1e-4",
        )


@style.with_style
def compare_figure(data: Comparison) -> "Figure":
    """Draws the difference after each step, and the tolerance."""
    settings, limit = data.settings, data.tolerance.relative
    sheet = Sheet(424, f"Difference from diffusers: {style.quote(settings.prompt, 2)}", data.about)
    axes = sheet.axes(104, sheet.top + 32, WIDTH - 104 - MARGIN, 300)
    shown = {g.index: g.relative for g in data.steps if 0 < g.relative < math.inf}
    floor = min(limit, *shown.values()) / 4 if shown else limit / 1e4
    same = [error.index for error in data.steps if error.relative == 0]
    axes.plot(list(shown), list(shown.values()), color=style.BLUE, marker="o", markersize=4)
    axes.plot(same, [floor] * len(same), color=style.GREEN, marker="o", markersize=4, linestyle="")
    axes.axhline(limit, color=style.ORANGE, linewidth=1.2)
    axes.set(
        ylim=(floor / 2, 4 * max(limit, *shown.values(), 0)), xlim=(-0.5, len(data.steps) - 0.5)
    )
    style.set_log_scale(axes)
    style.set_integer_ticks(axes)
    heading = "largest difference of the latents after a step, divided by their largest value"
    sheet.text(104, sheet.top + 20, heading)
    sheet.text(WIDTH / 2, sheet.top + 372, "step", ha="center")
    axes.annotate(
        f"allowed: {limit:g}", (1, limit), xycoords=("axes fraction", "data"), xytext=(0, 4),
        textcoords="offset points", ha="right", color=style.ORANGE, size=style.SMALL,
    )  # fmt: skip
    if same:
        axes.annotate(
            "identical", (same[0], floor), xytext=(0, 6), textcoords="offset points",
            color=style.GREEN, size=style.SMALL,
        )  # fmt: skip
    sheet.note(104, sheet.top + 408, f"the images: {data.image}; allowed: {data.tolerance.levels}")
    return sheet.figure
