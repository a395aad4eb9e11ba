"""The loop held against diffusers' own StableDiffusionPipeline, step by step.

Both draw from the same parts, one after the other, with the same noise and settings: no second
copy of the weights is in memory. Nothing imports torch or diffusers before something is drawn.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdpipe.errors import UsageError
from sdpipe.io.pixels import Difference, compare_pixels
from sdpipe.runtime.device import dtype_name
from sdpipe.settings import DEFAULTS, Settings
from sdpipe.show import style
from sdpipe.show.reference import check_guidance, check_length, draw_with_diffusers, plain_text
from sdpipe.show.style import MARGIN, WIDTH, Sheet
from sdpipe.values import format_scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from sdpipe.pipeline import Pipeline

OnStep = Callable[[int, int], object]
"""Called with how many steps of both together are done, and how many there are."""


@dataclass(frozen=True)
class Tolerance:
    """How far apart the two may be.

    relative: of the latents after any step: the largest difference by the largest value.
    levels: of the pictures: the largest difference of two 8-bit values.
    """

    relative: float
    levels: int


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(1e-4, 1),
    "float16": Tolerance(0.05, 32),
    "bfloat16": Tolerance(0.25, 128),
}
"""What is allowed in each dtype, on any device. In 16 bits diffusers rounds the latents after
every step and the loop does not, so the two part at once and the solver decides how far. In
bfloat16, over all schedulers at g 1, 3 and 7.5 on the built-in model, it was up to 0.12 and 62
levels (PNDM; the others 0.05 and 11); in float16, with LMS alone, a seventh of it. Twice as much
shows no small fault: that is what float32 is for."""


@dataclass(frozen=True)
class Gap:
    """How far apart the latents are after one step.

    timestep and sigma are those of the step's input. absolute is the largest difference of two
    values; relative is that by the largest value that diffusers has.
    """

    index: int
    timestep: float
    sigma: float
    absolute: float
    relative: float


@dataclass(frozen=True)
class Comparison:
    """What came of drawing the same picture in both ways.

    settings: every input, defaults filled in.
    model: name, revision and variant. notes: what was assumed to make the two comparable.
    """

    settings: Settings
    model: Mapping[str, Any]
    device: str
    dtype: str
    steps: list[Gap]
    picture: Difference
    tolerance: Tolerance
    notes: list[str]

    @property
    def worst(self) -> Gap:
        """The step after which the latents are farthest apart; one that is not finite is."""
        return max(self.steps, key=lambda gap: (gap.relative != gap.relative, gap.relative))

    @property
    def within(self) -> bool:
        """Whether nothing is beyond its tolerance."""
        near = self.worst.relative <= self.tolerance.relative  # False for NaN
        return near and self.picture.largest <= self.tolerance.levels

    def numbers(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {
            "within": self.within,
            "tolerance": {"relative": self.tolerance.relative, "levels": self.tolerance.levels},
            "largest": {"relative": self.worst.relative, "step": self.worst.index},
            "picture": {
                "largest": self.picture.largest,
                "mean": self.picture.mean,
                "psnr": self.picture.psnr,
            },
            "steps": [vars(gap) for gap in self.steps],
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
            f"{gap.index:>4}  {gap.timestep:>8.1f}  {gap.sigma:>7.3f}  {gap.relative:>8.1e}  "
            f"{gap.absolute:>8.1e}"
            for gap in self.steps
        ]
        return "\n".join([*lines, "", *self.verdict])

    @property
    def about(self) -> str:
        """What was drawn, in a line."""
        s = self.settings
        karras = " with Karras noise levels" if s.karras else ""
        g = format_scale(s.g or 0.0, "g")
        rescale = f" rescaled by {s.guidance_rescale:g}" if s.guidance_rescale else ""
        return (
            f"{self.model['name']}, {s.width} x {s.height}, seed {s.seed}, "
            f"g {g}{rescale}, {s.steps} steps of {s.scheduler}{karras}, "
            f"{self.dtype} on {self.device}"
        )

    @property
    def verdict(self) -> list[str]:
        """What it comes to, in two lines and a word."""
        relative, levels, worst = self.tolerance.relative, self.tolerance.levels, self.worst
        apart = (
            "the same bits after every step"
            if worst.relative == 0
            else f"apart by at most {worst.relative:.1e} of their largest value, after step "
            f"{worst.index}"
        )
        return [
            f"latents: {apart}; allowed is {relative:g}",
            f"picture: {self.picture}; allowed is {levels}",
            "within" if self.within else "not within",
        ]


def compare(
    pipe: "Pipeline",
    prompt: str,
    *,
    tolerance: float | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Comparison:
    """Draws one picture with the loop and with diffusers' pipeline, and measures how far apart.

    tolerance: of the latents after any step, relative; None is that of the pipeline's dtype.
    settings: those of `Pipeline.generate` that diffusers' pipeline has: for one picture, from noise
        alone, without interval and clip_skip.

    Raises:
        UsageError: a value breaks its rule, or diffusers cannot draw what it asks for.
        NotFiniteError: the loop produced NaN or infinity.
    """
    parts = pipe.components
    g = settings.get("g")
    own = parts.defaults.get("g", DEFAULTS["g"])
    check_guidance(own if g is None else g, settings.get("guidance_rescale", 0.0))
    if settings.get("guidance_interval") is not None:
        raise UsageError("diffusers' pipeline has no interval to compare with; leave it out.")
    for text in (prompt, settings.get("negative_prompt", "")):
        plain_text(text)
        check_length(parts, text)
    dtype = dtype_name(parts.dtype)
    allowed = TOLERANCES[dtype]
    if tolerance is not None:
        allowed = Tolerance(tolerance, allowed.levels)

    def tell(done: int, total: int) -> None:
        if on_step is not None:
            on_step(done, 2 * total)

    result = pipe.generate(
        prompt, save_int=True, on_step=lambda step: tell(step.index + 1, step.total), **settings
    )
    ours, run = result.steps, result.settings[0]
    gaps: list[Gap] = []

    def measure(latents: "Tensor") -> None:
        step = ours[len(gaps)]
        theirs = latents.float()
        absolute = float((step.latents - theirs).abs().max())
        relative = absolute / float(theirs.abs().max())
        gaps.append(Gap(step.index, step.timestep, step.sigma, absolute, relative))
        tell(len(ours) + len(gaps), len(ours))

    image, notes = draw_with_diffusers(parts, run, measure)
    identity = {name: getattr(parts.model, name) for name in ("name", "revision", "variant")}
    picture = compare_pixels(result.images[0], image)
    return Comparison(run, identity, str(parts.device), dtype, gaps, picture, allowed, notes)


def check_tolerance(tolerance: float | None) -> None:
    """Refuses what no difference can be held against.

    Raises:
        UsageError: the tolerance is negative, or no number.
    """
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise UsageError(
            f"tolerance={tolerance:g} is out of range: 0, the same bits, or more, such as 1e-4."
        )


@style.drawing
def compare_figure(data: Comparison) -> "Figure":
    """Draws how far apart the two are after each step, and what is allowed."""
    settings, limit = data.settings, data.tolerance.relative
    sheet = Sheet(424, f"Apart from diffusers: {style.quoted(settings.prompt, 2)}", data.about)
    axes = sheet.axes(104, sheet.top + 32, WIDTH - 104 - MARGIN, 300)
    shown = {g.index: g.relative for g in data.steps if 0 < g.relative < math.inf}
    floor = min(limit, *shown.values()) / 4 if shown else limit / 1e4
    same = [gap.index for gap in data.steps if gap.relative == 0]
    axes.plot(list(shown), list(shown.values()), color=style.BLUE, marker="o", markersize=4)
    axes.plot(same, [floor] * len(same), color=style.GREEN, marker="o", markersize=4, linestyle="")
    axes.axhline(limit, color=style.ORANGE, linewidth=1.2)
    axes.set(
        ylim=(floor / 2, 4 * max(limit, *shown.values(), 0)), xlim=(-0.5, len(data.steps) - 0.5)
    )
    style.logarithmic(axes)
    style.whole_numbers(axes)
    heading = "largest difference of the latents after a step, by their largest value; logarithmic"
    sheet.text(104, sheet.top + 20, heading)
    sheet.text(WIDTH / 2, sheet.top + 372, "step", ha="center")
    axes.annotate(
        f"allowed: {limit:g}", (1, limit), xycoords=("axes fraction", "data"), xytext=(0, 4),
        textcoords="offset points", ha="right", color=style.ORANGE, size=style.SMALL,
    )  # fmt: skip
    if same:
        axes.annotate(
            "the same bits", (same[0], floor), xytext=(0, 6), textcoords="offset points",
            color=style.GREEN, size=style.SMALL,
        )  # fmt: skip
    sheet.note(
        104, sheet.top + 408, f"the pictures: {data.picture}; allowed is {data.tolerance.levels}"
    )
    return sheet.figure
