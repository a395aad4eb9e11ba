"""The forward process: an image with the noise of several timesteps."""

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
from sdpipe.show.inputs import crop_to_size, resolve_one
from sdpipe.show.style import MARGIN, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline

TIMES = (0, 100, 250, 500, 750, 999)


@dataclass(frozen=True, eq=False)
class NoisyImages:
    """An image at n timesteps of the forward process; each list has n entries.

    alpha_bar: the signal's share of the variance; the signal-to-noise ratio is
        alpha_bar / (1 - alpha_bar), the same for every element of the latents.
    latents: x_t, (n, C, h, w). images: x_t decoded.
    """

    times: list[int]
    alpha_bar: list[float]
    seed: int
    latents: Tensor
    images: list[Image.Image]

    @property
    def snr(self) -> list[float]:
        """The signal-to-noise ratios; infinite without noise."""
        return [a / (1 - a) if a < 1 else math.inf for a in self.alpha_bar]

    @property
    def sigma(self) -> list[float]:
        """Noise per unit of signal; infinite without signal."""
        return [math.sqrt((1 - a) / a) if a > 0 else math.inf for a in self.alpha_bar]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON types."""
        return {
            "t": self.times,
            "alpha_bar": self.alpha_bar,
            "sigma": self.sigma,
            "snr": self.snr,
            "seed": self.seed,
        }


def noise_data(
    pipe: "Pipeline",
    image: Image.Image,
    times: Sequence[int] = TIMES,
    *,
    seed: int | None = None,
    dim: int | None = None,
) -> NoisyImages:
    """Encodes an image, adds the same noise in the amounts of `times`, and decodes.

    The middle of the image is scaled to the model's size, or to `dim`. The noise is the starting
    noise of an image with this seed; None draws a seed.

    Raises:
        UsageError: a timestep, the seed or `dim` breaks its rule.
    """
    check_times(times)
    parts = pipe.components
    settings = resolve_one(pipe, seed=seed, dim=dim)
    x_0 = pil_to_latents(parts.vae, crop_to_size(image, settings)).cpu()  # (1, C, h, w)
    channels, h, w = x_0.shape[1:]
    eps = draw_noise(make_generators([settings.seed]), (channels, h, w))
    alpha_bar = alpha_bars(pipe.components.scheduler_config)[list(times)]  # (n,)
    x_t = torch.cat([add_noise(x_0, eps, a[None]) for a in alpha_bar])  # (n, C, h, w)
    return NoisyImages(
        times=list(times),
        alpha_bar=alpha_bar.tolist(),
        seed=settings.seed,
        latents=x_t,
        images=[latents_to_pil(parts.vae, x)[0] for x in x_t.split(1)],
    )


@style.with_style
def noise_figure(data: NoisyImages) -> "Figure":
    """Draws the images with t, alpha_bar and the signal-to-noise ratio of each."""
    width, height = data.images[0].size
    places, bottom = style.grid_cells(len(data.images), height / width, 92)
    sheet = Sheet(bottom + 12, "The forward process: an image, and noise", "")
    sheet.text(
        MARGIN,
        67,
        r"$q(x_t\,|\,x_0) = \mathcal{N}(\sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t)\,I)$"
        f", in latents, then decoded; noise of seed {data.seed}; "
        r"blue: $\bar\alpha_t$, the share of the image in the variance",
        size=style.SMALL,
        color=style.FAINT,
    )
    canvas = sheet.canvas()
    for i, (x, y, w, h) in enumerate(places):
        y += sheet.top
        sheet.image(x, y, w, h, data.images[i])
        signal = w * data.alpha_bar[i]
        style.draw_bar(canvas, x, y + h + 6, signal, 5, style.BLUE)
        style.draw_bar(canvas, x + signal, y + h + 6, w - signal, 5, style.EDGE)
        sheet.text(x, y + h + 30, f"$t$ = {data.times[i]}")
        sheet.note(x, y + h + 48, rf"$\bar\alpha_t$ = {data.alpha_bar[i]:.3g}")
        sheet.note(x, y + h + 65, f"SNR {_format_snr(data.snr[i])}")
    return sheet.figure


def _format_snr(snr: float) -> str:
    return f"{snr:.0f}" if snr >= 100 else f"{snr:.2g}"
