"""The filmstrip: noise becoming an image, at a glance."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from sdpipe.io.sheet import Table, draw_sheet, scale_to
from sdpipe.settings import Settings
from sdpipe.values import format_scale

COLUMNS = 9
CELL = 128  # pixels of the longer side of an image on the strip, about


@dataclass(frozen=True)
class Column:
    """The state after `step` steps, 0 being the starting noise, and its noise level.

    x_t: the latents of this state, decoded. x0: the image predicted from them, decoded. After the
        last step no noise is left, so that both are the same image.
    """

    step: int
    sigma: float
    x_t: Image.Image
    x0: Image.Image


def spread_states(steps: int, most: int = COLUMNS) -> list[int]:
    """At most `most` of the states 0 to `steps`, evenly spaced, always the first and the last."""
    gaps = min(steps, most - 1)
    return [round(i * steps / max(1, gaps)) for i in range(gaps + 1)]


def filmstrip(columns: Sequence[Column], title: str = "", subtitle: str = "") -> Image.Image:
    """Draws x_t above and the predicted x_0 below, with the step and its sigma over each pair."""
    above = [scale_to(column.x_t, CELL) for column in columns]
    below = [scale_to(column.x0, CELL) for column in columns]
    labels = [
        f"{f'step {column.step}' if column.step else 'noise'}\nsigma {format_sigma(column.sigma)}"
        for column in columns
    ]
    rows = ["x_t\nthe latents, decoded", "x_0\nthe image predicted"]
    table = Table(labels, rows, [above, below])
    return draw_sheet([table], above[0].size, lambda image: image, title, subtitle)


def title_lines(settings: Settings) -> tuple[str, str]:
    """A title and a subtitle from the resolved settings of an image."""
    details = [f"seed {settings.seed}", f"{settings.steps} steps", settings.scheduler or ""]
    if settings.karras:
        details.append("karras")
    if settings.g is not None:
        details.append(f"g {format_scale(settings.g, 'g')}")
    if settings.negative_prompt:
        details.append(f"not: {settings.negative_prompt}")
    return settings.prompt, " · ".join(details)


def format_sigma(sigma: float) -> str:
    """A noise level in about three digits."""
    return f"{sigma:.1f}" if sigma >= 10 else f"{sigma:.2f}" if sigma else "0"
