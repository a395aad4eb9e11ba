"""The noise schedule of a model, and the timesteps at which each scheduler calls the U-Net.

Needs a scheduler's configuration and no networks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdpipe.schedule import make_schedule
from sdpipe.settings import (
    DEFAULTS,
    DISTILLED_SCHEDULERS,
    KARRAS_SCHEDULERS,
    MAX_DISTILLED_STEPS,
    SCHEDULERS,
)
from sdpipe.show import style
from sdpipe.show.checks import check_schedule
from sdpipe.show.style import MARGIN, WIDTH, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT, RIGHT = 136, 104  # margins of the curves, for names and counts
ROW = 28


@dataclass(frozen=True)
class NoiseSchedule:
    """A model's noise schedule, and the calls of the U-Net by several schedulers.

    alpha_bar: the signal's share of the variance, T entries from t = 0. sigma: noise per unit of
        signal, sqrt((1 - alpha_bar) / alpha_bar), T entries.
    steps: the number asked for.
    calls: by scheduler.
    """

    alpha_bar: tuple[float, ...]
    sigma: tuple[float, ...]
    steps: int
    karras: bool
    calls: Mapping[str, "UNetCalls"]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        schedulers = {
            name: {"timesteps": list(p.timesteps), "sigmas": list(p.sigmas)}
            for name, p in self.calls.items()
        }
        return {
            "alpha_bar": list(self.alpha_bar),
            "sigma": list(self.sigma),
            "steps": self.steps,
            "karras": self.karras,
            "schedulers": schedulers,
        }


@dataclass(frozen=True)
class UNetCalls:
    """Timestep and sigma of the input of every call; len(sigmas) == len(timesteps) + 1.

    The last sigma is the noise level that remains.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def twice(self) -> list[float]:
        """The timesteps of more than one call."""
        return [t for t, count in Counter(self.timesteps).items() if count > 1]


def schedule_data(
    config: Mapping[str, Any],
    names: Sequence[str] = (),
    steps: int | None = None,
    *,
    karras: bool = False,
) -> NoiseSchedule:
    """The noise schedule of a scheduler's configuration, and the calls of the schedulers `names`.

    Without names all schedulers are shown that take so many steps; with `karras` those that have
    Karras sigmas.

    Raises:
        UsageError: see `check_schedule`.
    """
    steps = DEFAULTS["steps"] if steps is None else steps
    several = steps <= MAX_DISTILLED_STEPS
    able = [name for name in SCHEDULERS if several or name not in DISTILLED_SCHEDULERS]
    names = names or (KARRAS_SCHEDULERS if karras else able)
    check_schedule(names, steps, karras)
    made = {name: make_schedule(name, config, steps, karras=karras) for name in names}
    alpha_bar = next(iter(made.values())).scheduler.alphas_cumprod.double()  # (T,)
    return NoiseSchedule(
        alpha_bar=tuple(alpha_bar.tolist()),
        sigma=tuple(((1 - alpha_bar) / alpha_bar).sqrt().tolist()),
        steps=steps,
        karras=karras,
        calls={
            name: UNetCalls(tuple(float(t) for t in s.timesteps), tuple(s.sigmas))
            for name, s in made.items()
        },
    )


@style.with_style
def schedule_figure(data: NoiseSchedule) -> "Figure":
    """Draws sigma and alpha_bar over time, noise on the left, and a row of calls by scheduler."""
    rows, last = len(data.calls), len(data.alpha_bar) - 1
    sheet = Sheet(
        424 + rows * ROW,
        "Noise over time, and where the steps are",
        f"{data.steps} step{'s' * (data.steps != 1)}{' with Karras noise levels' * data.karras}, "
        f"trained on timesteps 0 to {last}; denoising goes from left to right",
    )
    width, top = WIDTH - LEFT - RIGHT, sheet.top + 24
    sigma = sheet.axes(LEFT, top, width, 150)
    sigma.plot(data.sigma, color=style.BLUE)
    style.set_log_scale(sigma)
    share = sheet.axes(LEFT, top + 196, width, 110)
    share.plot(data.alpha_bar, color=style.ORANGE)
    share.set(ylim=(0, 1.03), yticks=[0, 0.5, 1])
    share.yaxis.set_major_formatter("{x:g}")
    steps = sheet.axes(LEFT, top + 352, width, rows * ROW)
    for row, places in enumerate(data.calls.values()):
        at = (row - 0.3, row + 0.3)
        steps.vlines(places.timesteps, *at, color=style.BLUE, linewidth=1.2)
        steps.vlines(places.twice, *at, color=style.ORANGE, linewidth=1.2)
    steps.set(ylim=(rows - 0.4, -0.6), yticks=[])
    steps.spines["left"].set_visible(False)
    for axes in (sigma, share, steps):
        axes.set(
            xlim=(1.02 * last, -0.02 * last), xticks=[last, *range(last - last % 200, -1, -200)]
        )
        axes.tick_params(axis="x", labelbottom=axes is steps, length=3 if axes is steps else 0)

    again = "; orange: twice" if any(places.twice for places in data.calls.values()) else ""
    headings = (
        (top, r"$\sigma$, noise per unit of signal, on a logarithmic scale"),
        (top + 196, r"$\bar\alpha_t = 1/(1+\sigma^2)$, the share of the image in the variance"),
        (top + 352, f"where each scheduler calls the U-Net{again}"),
    )
    for y, heading in headings:
        sheet.text(LEFT, y - 12, heading)
    bottom = top + 352 + rows * ROW
    sheet.text(LEFT + width / 2, bottom + 40, "timestep t", ha="center")
    for row, (name, places) in enumerate(data.calls.items()):
        middle = top + 352 + (row + 0.6) / (rows + 0.2) * rows * ROW
        count = len(places.timesteps)
        calls = f"{count} call{'s' * (count > 1)}"
        sheet.text(LEFT - 14, middle + 4, name, ha="right")
        sheet.note(WIDTH - MARGIN, middle + 4, calls, ha="right")
    return sheet.figure
