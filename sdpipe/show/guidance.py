"""Classifier-free guidance laid open: without the prompt, with it, and what goes beyond both."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from sdpipe.denoise import Step
from sdpipe.errors import UsageError
from sdpipe.guidance import Guidance
from sdpipe.latents import angle_between, latents_to_pil
from sdpipe.show import style
from sdpipe.show.checks import check_at, check_guidance
from sdpipe.show.filmstrip import format_sigma, spread_states
from sdpipe.show.listen import Listener
from sdpipe.show.stages import sampling, settle
from sdpipe.show.style import MARGIN, WIDTH, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline
    from sdpipe.settings import Settings

COLUMNS = 6
GAP, LABELS = 8, 128  # pixels between pictures, and for the names of the rows
FEW = 12  # steps that are dots on the curves; a single one would be no line
LETTERS = {"epsilon": r"\epsilon", "v_prediction": "v"}


@dataclass(frozen=True)
class Contrast:
    """The two predictions of one step: their lengths, and how far apart they are.

    norm_uncond, norm_cond, norm_difference: the Euclidean norms of the U-Net's outputs without
        and with the prompt, and of the difference that guidance multiplies.
    angle: between the two outputs, in degrees.
    """

    timestep: float
    sigma: float
    norm_uncond: float
    norm_cond: float
    norm_difference: float
    angle: float


@dataclass(frozen=True, eq=False)
class Guided:
    """Guidance over a whole run.

    settings: of the picture. size: how many numbers the latents have.
    prediction_type: what the outputs are: "epsilon", "v_prediction" or "sample".
    contrasts: one for every step.
    at: the steps, from 0, that are shown as pictures; for each the clean latents predicted without
        the prompt, with it, and under guidance, decoded.
    """

    settings: "Settings"
    prediction_type: str
    size: int
    contrasts: list[Contrast]
    at: list[int]
    pictures: list[tuple[Image.Image, Image.Image, Image.Image]]

    def numbers(self) -> dict[str, Any]:
        """What can be said in JSON: lists with one entry for every step."""
        lists = {
            name: [getattr(contrast, name) for contrast in self.contrasts]
            for name in Contrast.__dataclass_fields__
        }
        return {
            "settings": self.settings.to_dict(),
            "prediction_type": self.prediction_type,
            "size": self.size,
            "at": self.at,
            **lists,
        }


def guidance_data(
    pipe: "Pipeline",
    prompt: str,
    at: Sequence[int] = (),
    *,
    on_step: Callable[[Step], object] | None = None,
    **settings: Any,
) -> Guided:
    """Draws a picture as `Pipeline.generate` does, and compares both predictions at every step.

    at: steps, counted from 0 as `Step.index` is, that are decoded; left out, some spread evenly.
        Heun and PNDM have more of them than `settings` ask for: the U-Net's calls are counted.

    Raises:
        UsageError: a value breaks its rule, or g is 1 or 0, if only at one step: then there is but
            one prediction. So it is outside of an interval; and what rescale does is not shown.
    """
    own = settle(pipe, prompt, **settings)
    check_guidance(own.g, own.steps, own.scheduler)
    if own.guidance_rescale or own.guidance_interval is not None:
        name = "guidance_rescale" if own.guidance_rescale else "guidance_interval"
        raise UsageError(f"{name} has no place in this drawing; leave it out.")
    guidance = Guidance(own.g or 0.0)
    check_at(at, own.steps, own.scheduler)
    listener = Listener(pipe.components.unet)
    settings = {**settings, "seed": own.seed, "save_int": True, "on_step": on_step}
    steps = pipe.with_parts(unet=listener).generate(prompt, **settings).steps
    at = list(at) or spread_states(len(steps) - 1, COLUMNS)
    kind = pipe.components.scheduler_config.get("prediction_type", "epsilon")
    contrasts, pictures = [], []
    for step, both in zip(steps, listener.outputs, strict=True):
        contrasts.append(_contrast(step, *both.chunk(2)))
        if step.index in at:
            g_t = guidance.at(step.index, step.total, step.sigma)
            three = torch.cat(clean_each(step, both, g_t, kind))
            shown = [latents_to_pil(pipe.components.vae, z)[0] for z in three.split(1)]
            pictures.append((shown[0], shown[1], shown[2]))
    return Guided(own, kind, steps[0].x0.numel(), contrasts, sorted(set(at)), pictures)


def clean_each(
    step: Step, both: Tensor, g: float, prediction_type: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The clean latents that the outputs [uncond, cond] and the guided one amount to, (1, C, h, w).

    `denoise.predict_x0` is x0 = a x_in + b output, and `step.x0` is that of the guided output;
    the others differ from it by b times the difference of the outputs.
    """
    uncond, cond = both.chunk(2)
    guided = uncond + g * (cond - uncond)
    alpha_bar = 1 / (1 + step.sigma**2)
    b = {"epsilon": -step.sigma, "v_prediction": -math.sqrt(1 - alpha_bar)}.get(
        prediction_type, 1.0
    )
    return step.x0 + b * (uncond - guided), step.x0 + b * (cond - guided), step.x0


def _contrast(step: Step, uncond: Tensor, cond: Tensor) -> Contrast:
    a, b = uncond.double(), cond.double()
    norms = float(a.norm()), float(b.norm()), float((b - a).norm())
    return Contrast(step.timestep, step.sigma, *norms, math.degrees(angle_between(a, b)))


@style.drawing
def guidance_figure(data: Guided) -> "Figure":
    """Draws the three predictions of each chosen step, and norms and angle over all steps."""
    columns = max(len(data.at), 4)
    aspect = data.pictures[0][0].height / data.pictures[0][0].width
    w = (WIDTH - 2 * MARGIN - LABELS - GAP * (columns - 1)) / columns
    h = w * aspect
    row = max(h, 40) + GAP
    sheet = Sheet(
        46 + 3 * row + 284,
        style.quoted(data.settings.prompt),
        f"the picture that each step predicts without the prompt, with it, and guided; "
        f"seed {data.settings.seed}, {sampling(data.settings)}",
    )
    top = sheet.top + 40
    for i, (index, pictures) in enumerate(zip(data.at, data.pictures, strict=True)):
        x = MARGIN + LABELS + i * (w + GAP)
        sheet.text(x, sheet.top + 8, f"step {index}")
        sigma = rf"$\sigma$ {format_sigma(data.contrasts[index].sigma)}"
        sheet.note(x, sheet.top + 26, sigma)
        for k, picture in enumerate(pictures):
            sheet.picture(x, top + k * row, w, h, picture)
    letter = LETTERS.get(data.prediction_type, "x")
    names = (
        ("without prompt", f"${letter}_u$"),
        ("with prompt", f"${letter}_c$"),
        ("guided", rf"${letter}_u + g\,({letter}_c - {letter}_u)$"),
    )
    for k, (name, symbol) in enumerate(names):
        y = top + k * row + h / 2
        sheet.text(MARGIN, y - 4, name)
        sheet.note(MARGIN, y + 15, symbol)
    _draw_curves(sheet, top + 3 * row + 64, data, letter)
    return sheet.figure


def _draw_curves(sheet: Sheet, y: float, data: Guided, letter: str) -> None:
    """Norms to the left, the angle to the right, over all steps."""
    left, right, width, height = MARGIN + 28, WIDTH - MARGIN - 368, 368, 150
    steps = range(len(data.contrasts))
    dot = "o" if len(steps) <= FEW else ""
    sheet.text(left, y - 32, "length of the predictions, root mean square")
    norms = sheet.axes(left, y, width, height)
    curves = (
        (0, rf"$|{letter}_u|$ without", "norm_uncond", style.BLUE, "-"),
        (94, rf"$|{letter}_c|$ with", "norm_cond", style.ORANGE, (0, (2, 2))),
        (164, rf"$|{letter}_c - {letter}_u|$ difference", "norm_difference", style.GREEN, "-"),
    )
    for x, label, name, color, line in curves:
        values = [getattr(contrast, name) / math.sqrt(data.size) for contrast in data.contrasts]
        norms.plot(steps, values, color=color, linestyle=line, marker=dot, markersize=3.5)
        sheet.text(left + x, y - 11, label, size=style.SMALL, color=color)
    style.logarithmic(norms)
    sheet.text(right, y - 32, rf"angle between ${letter}_u$ and ${letter}_c$, degrees")
    angle = sheet.axes(right, y, width, height)
    degrees = [contrast.angle for contrast in data.contrasts]
    angle.plot(steps, degrees, color=style.PURPLE, marker=dot, markersize=3.5)
    angle.set(ylim=(0, None))
    for axes, x in ((norms, left), (angle, right)):
        style.whole_numbers(axes)
        sheet.note(x + width, y + height + 36, "step", ha="right")
