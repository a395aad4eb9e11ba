"""The forward process: a picture that drowns in noise, at times of your choice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from sdpipe.latents import add_noise, draw_noise, latents_to_pil, make_generators, pil_to_latents
from sdpipe.schedule import alpha_bars
from sdpipe.show import style
from sdpipe.show.checks import check_times
from sdpipe.show.stages import brought_to_size, settle
from sdpipe.show.style import MARGIN, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline

TIMES = (0, 100, 250, 500, 750, 999)


@dataclass(frozen=True, eq=False)
class Noised:
    """A picture at some timesteps of the forward process; each list has one entry for each.

    alpha_bar: the share of the signal's variance; the signal-to-noise ratio is
        alpha_bar / (1 - alpha_bar), the same for every element of the latents.
    latents: x_t, (n, C, h, w). pictures: x_t decoded.
    """

    times: list[int]
    alpha_bar: list[float]
    seed: int
    latents: Tensor
    pictures: list[Image.Image]

    @property
    def snr(self) -> list[float]:
        """The signal-to-noise ratios; infinite where nothing is noise."""
        return [a / (1 - a) if a < 1 else math.inf for a in self.alpha_bar]

    @property
    def sigma(self) -> list[float]:
        """Noise per unit of signal; infinite where nothing is signal."""
        return [math.sqrt((1 - a) / a) if a > 0 else math.inf for a in self.alpha_bar]

    def numbers(self) -> dict[str, Any]:
        """What can be said in JSON."""
        return {
            "t": self.times,
            "alpha_bar": self.alpha_bar,
            "sigma": self.sigma,
            "snr": self.snr,
            "seed": self.seed,
        }


def noise_data(
    pipe: "Pipeline",
    picture: Image.Image,
    times: Sequence[int] = TIMES,
    *,
    seed: int | None = None,
    dim: int | None = None,
) -> Noised:
    """Encodes a picture, adds noise as at every one of `times`, always the same, and decodes.

    The picture's middle is brought to the model's size, or to `dim`. The noise is what the seed
    draws first, the noise that a picture of that seed starts from; None draws a seed.

    Raises:
        UsageError: a time, the seed or dim breaks its rule.
    """
    check_times(times)
    parts = pipe.components
    settings = settle(pipe, seed=seed, dim=dim)
    assert settings.seed is not None
    x_0 = pil_to_latents(parts.vae, brought_to_size(picture, settings)).cpu()  # (1, C, h, w)
    channels, h, w = x_0.shape[1:]
    eps = draw_noise(make_generators([settings.seed]), (channels, h, w))
    alpha_bar = alpha_bars(pipe.components.scheduler_config)[list(times)]  # (n,)
    x_t = torch.cat([add_noise(x_0, eps, a[None]) for a in alpha_bar])  # (n, C, h, w)
    return Noised(
        times=list(times),
        alpha_bar=alpha_bar.tolist(),
        seed=settings.seed,
        latents=x_t,
        pictures=[latents_to_pil(parts.vae, x)[0] for x in x_t.split(1)],
    )


@style.drawing
def noise_figure(data: Noised) -> "Figure":
    """Draws a strip of the pictures, with t, alpha_bar and the signal-to-noise ratio of each."""
    width, height = data.pictures[0].size
    places, bottom = style.cells(len(data.pictures), height / width, 92)
    sheet = Sheet(bottom + 12, "The forward process: a picture, and noise", "")
    sheet.text(
        MARGIN,
        67,
        r"$q(x_t\,|\,x_0) = \mathcal{N}(\sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t)\,I)$"
        f", in latents, then decoded; noise of seed {data.seed}; "
        r"blue: $\bar\alpha_t$, the share of the picture in the variance",
        size=style.SMALL,
        color=style.FAINT,
    )
    canvas = sheet.canvas()
    for i, (x, y, w, h) in enumerate(places):
        y += sheet.top
        sheet.picture(x, y, w, h, data.pictures[i])
        signal = w * data.alpha_bar[i]
        style.bar(canvas, x, y + h + 6, signal, 5, style.BLUE)
        style.bar(canvas, x + signal, y + h + 6, w - signal, 5, style.EDGE)
        sheet.text(x, y + h + 30, f"$t$ = {data.times[i]}")
        sheet.note(x, y + h + 48, rf"$\bar\alpha_t$ = {data.alpha_bar[i]:.3g}")
        sheet.note(x, y + h + 65, f"SNR {_ratio(data.snr[i])}")
    return sheet.figure


def _ratio(snr: float) -> str:
    return f"{snr:.0f}" if snr >= 100 else f"{snr:.2g}"
