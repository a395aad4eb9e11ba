"""How much noise there is at which time, and where each scheduler takes its steps.

Needs a scheduler's configuration and none of a model's networks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdpipe.schedule import make_schedule
from sdpipe.settings import DEFAULTS, KARRAS_SCHEDULERS, SCHEDULERS
from sdpipe.show import style
from sdpipe.show.checks import check_schedule
from sdpipe.show.style import MARGIN, WIDTH, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT, RIGHT = 104, 104  # of the curves: names stand before them, counts after
ROW = 28


@dataclass(frozen=True)
class Schedule:
    """A model's noise schedule, T entries each from t = 0, and the steps of some schedulers.

    alpha_bar: the share of the signal's variance. sigma: noise per unit of signal,
        sqrt((1 - alpha_bar) / alpha_bar).
    steps: what was asked for; `places` has what each scheduler makes of it.
    places: by scheduler, the timestep and the sigma of the input of every evaluation of the
        U-Net, and one sigma more: what the last one leaves.
    """

    alpha_bar: tuple[float, ...]
    sigma: tuple[float, ...]
    steps: int
    karras: bool
    places: Mapping[str, "Places"]

    def numbers(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        schedulers = {
            name: {"timesteps": list(p.timesteps), "sigmas": list(p.sigmas)}
            for name, p in self.places.items()
        }
        return {
            "alpha_bar": list(self.alpha_bar),
            "sigma": list(self.sigma),
            "steps": self.steps,
            "karras": self.karras,
            "schedulers": schedulers,
        }


@dataclass(frozen=True)
class Places:
    """Where one scheduler evaluates the U-Net; see `Schedule.places`."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def twice(self) -> list[float]:
        """The timesteps of more than one evaluation."""
        return [t for t, count in Counter(self.timesteps).items() if count > 1]


def schedule_data(
    config: Mapping[str, Any],
    names: Sequence[str] = (),
    steps: int | None = None,
    *,
    karras: bool = False,
) -> Schedule:
    """The noise schedule of a scheduler's configuration, and where `names` place `steps`.

    No names are all schedulers, with karras all that have such noise levels.

    Raises:
        UsageError: see `check_schedule`.
    """
    names = names or (KARRAS_SCHEDULERS if karras else SCHEDULERS)
    steps = DEFAULTS["steps"] if steps is None else steps
    check_schedule(names, steps, karras)
    made = {name: make_schedule(name, config, steps, karras=karras) for name in names}
    alpha_bar = next(iter(made.values())).scheduler.alphas_cumprod.double()  # (T,)
    return Schedule(
        alpha_bar=tuple(alpha_bar.tolist()),
        sigma=tuple(((1 - alpha_bar) / alpha_bar).sqrt().tolist()),
        steps=steps,
        karras=karras,
        places={
            name: Places(tuple(float(t) for t in s.timesteps), tuple(s.sigmas))
            for name, s in made.items()
        },
    )


@style.drawing
def schedule_figure(data: Schedule) -> "Figure":
    """Draws both curves, noise to the left as in a filmstrip, and a row of steps a scheduler."""
    rows, last = len(data.places), len(data.alpha_bar) - 1
    sheet = Sheet(
        424 + rows * ROW,
        "Noise over time, and where the steps are",
        f"{data.steps} step{'s' * (data.steps != 1)}{' with Karras noise levels' * data.karras}, "
        f"trained on timesteps 0 to {last}; denoising goes from left to right",
    )
    width, top = WIDTH - LEFT - RIGHT, sheet.top + 24
    sigma = sheet.axes(LEFT, top, width, 150)
    sigma.plot(data.sigma, color=style.BLUE)
    style.logarithmic(sigma)
    share = sheet.axes(LEFT, top + 196, width, 110)
    share.plot(data.alpha_bar, color=style.ORANGE)
    share.set(ylim=(0, 1.03), yticks=[0, 0.5, 1])
    share.yaxis.set_major_formatter("{x:g}")
    steps = sheet.axes(LEFT, top + 352, width, rows * ROW)
    for row, places in enumerate(data.places.values()):
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

    again = "; orange: twice" if any(places.twice for places in data.places.values()) else ""
    headings = (
        (top, r"$\sigma$, noise per unit of signal, on a logarithmic scale"),
        (top + 196, r"$\bar\alpha_t = 1/(1+\sigma^2)$, the share of the picture in the variance"),
        (top + 352, f"where each scheduler calls the U-Net{again}"),
    )
    for y, heading in headings:
        sheet.text(LEFT, y - 12, heading)
    bottom = top + 352 + rows * ROW
    sheet.text(LEFT + width / 2, bottom + 40, "timestep t", ha="center")
    for row, (name, places) in enumerate(data.places.items()):
        middle = top + 352 + (row + 0.6) / (rows + 0.2) * rows * ROW
        count = len(places.timesteps)
        calls = f"{count} call{'s' * (count > 1)}"
        sheet.text(LEFT - 14, middle + 4, name, ha="right")
        sheet.note(WIDTH - MARGIN, middle + 4, calls, ha="right")
    return sheet.figure
