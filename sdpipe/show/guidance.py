"""Classifier-free guidance: the predictions without the prompt, with it, and guided."""

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
from sdpipe.show.inputs import describe_sampling, resolve_one
from sdpipe.show.style import MARGIN, WIDTH, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdpipe.pipeline import Pipeline
    from sdpipe.settings import ResolvedSettings

COLUMNS = 6
GAP, LABELS = 8, 128  # pixels between images, and for the names of the rows
FEW = 12  # steps up to which the curves have dots; one step would be no line
LETTERS = {"epsilon": r"\epsilon", "v_prediction": "v"}


@dataclass(frozen=True)
class GuidanceStats:
    """The two predictions of one step: their norms and the angle between them.

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
class GuidanceRun:
    """Guidance over a whole run.

    settings: of the image. size: the number of elements of the latents.
    prediction_type: of the outputs: "epsilon", "v_prediction" or "sample".
    stats: one for every step.
    at: the steps, from 0, that are shown as images. images: for each of them the clean latents
        predicted without the prompt, with it, and guided, decoded.
    """

    settings: "ResolvedSettings"
    prediction_type: str
    size: int
    stats: list[GuidanceStats]
    at: list[int]
    images: list[tuple[Image.Image, Image.Image, Image.Image]]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types: lists with one entry for every step."""
        lists = {
            name: [getattr(item, name) for item in self.stats]
            for name in GuidanceStats.__dataclass_fields__
        }
        return {
            "settings": self.settings.to_dict(),
            "prediction_type": self.prediction_type,
            "size": self.size,
            "at": self.at,
            **lists,
        }


class RecordingUNet:
    """Wraps a U-Net and keeps its outputs.

    outputs: one for each call, in float32, as `guidance.predict` returns it.
    """

    def __init__(self, unet: Any) -> None:
        self.outputs: list[Tensor] = []
        self._unet = unet

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the U-Net."""
        output = self._unet(*args, **kwargs)
        self.outputs.append(output.sample.float())
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)


def guidance_data(
    pipe: "Pipeline",
    prompt: str,
    at: Sequence[int] = (),
    *,
    on_step: Callable[[Step], object] | None = None,
    **settings: Any,
) -> GuidanceRun:
    """Draws an image as `Pipeline.generate` does, and compares both predictions at every step.

    at: the steps to decode, counted from 0 as `Step.index`; empty for some, evenly spread. They
        count calls of the U-Net: with Heun and PNDM more than `settings` ask for.

    Raises:
        UsageError: a value breaks its rule; or g is 1 or 0, at least at one step, which leaves one
            prediction; or `guidance_rescale` or `guidance_interval` is set.
    """
    run = resolve_one(pipe, prompt, **settings)
    check_guidance(run.g, run.steps, run.scheduler)
    if run.guidance_rescale or run.guidance_interval is not None:
        name = "guidance_rescale" if run.guidance_rescale else "guidance_interval"
        raise UsageError(name, "cannot be shown here", "leave it out")
    guidance = Guidance(run.g)
    check_at(at, run.steps, run.scheduler)
    recorder = RecordingUNet(pipe.components.unet)
    settings = {**settings, "seed": run.seed, "save_int": True, "on_step": on_step}
    steps = pipe.with_parts(unet=recorder).generate(prompt, **settings).steps
    at = list(at) or spread_states(len(steps) - 1, COLUMNS)
    kind = pipe.components.scheduler_config.get("prediction_type", "epsilon")
    stats, images = [], []
    for step, both in zip(steps, recorder.outputs, strict=True):
        stats.append(_measure(step, *both.chunk(2)))
        if step.index in at:
            g_t = guidance.at(step.index, step.total, step.sigma)
            three = torch.cat(split_x0(step, both, g_t, kind))
            shown = [latents_to_pil(pipe.components.vae, z)[0] for z in three.split(1)]
            images.append((shown[0], shown[1], shown[2]))
    return GuidanceRun(run, kind, steps[0].x0.numel(), stats, sorted(set(at)), images)


def split_x0(
    step: Step, both: Tensor, g: float, prediction_type: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The clean latents predicted by the outputs uncond, cond and guided, each (1, C, h, w).

    both: [uncond, cond]. `denoise.predict_x0` is x0 = a x_in + b output, and `step.x0` is that of
    the guided output: the others differ by b times the difference of the outputs.
    """
    uncond, cond = both.chunk(2)
    guided = uncond + g * (cond - uncond)
    alpha_bar = 1 / (1 + step.sigma**2)
    b = {"epsilon": -step.sigma, "v_prediction": -math.sqrt(1 - alpha_bar)}.get(
        prediction_type, 1.0
    )
    return step.x0 + b * (uncond - guided), step.x0 + b * (cond - guided), step.x0


def _measure(step: Step, uncond: Tensor, cond: Tensor) -> GuidanceStats:
    a, b = uncond.double(), cond.double()
    norms = float(a.norm()), float(b.norm()), float((b - a).norm())
    return GuidanceStats(step.timestep, step.sigma, *norms, math.degrees(angle_between(a, b)))


@style.with_style
def guidance_figure(data: GuidanceRun) -> "Figure":
    """Draws the three predictions of the steps `at`, and norms and angle over all steps."""
    columns = max(len(data.at), 4)
    aspect = data.images[0][0].height / data.images[0][0].width
    w = (WIDTH - 2 * MARGIN - LABELS - GAP * (columns - 1)) / columns
    h = w * aspect
    row = max(h, 40) + GAP
    sheet = Sheet(
        46 + 3 * row + 284,
        style.quote(data.settings.prompt),
        f"the image that each step predicts without the prompt, with it, and guided; "
        f"seed {data.settings.seed}, {describe_sampling(data.settings)}",
    )
    top = sheet.top + 40
    for i, (index, images) in enumerate(zip(data.at, data.images, strict=True)):
        x = MARGIN + LABELS + i * (w + GAP)
        sheet.text(x, sheet.top + 8, f"step {index}")
        sigma = rf"$\sigma$ {format_sigma(data.stats[index].sigma)}"
        sheet.note(x, sheet.top + 26, sigma)
        for k, image in enumerate(images):
            sheet.image(x, top + k * row, w, h, image)
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


def _draw_curves(sheet: Sheet, y: float, data: GuidanceRun, letter: str) -> None:
    """Draws the norms on the left and the angle on the right, over all steps."""
    left, right, width, height = MARGIN + 28, WIDTH - MARGIN - 368, 368, 150
    steps = range(len(data.stats))
    dot = "o" if len(steps) <= FEW else ""
    sheet.text(left, y - 32, "length of the predictions, root mean square")
    norms = sheet.axes(left, y, width, height)
    curves = (
        (0, rf"$|{letter}_u|$ without", "norm_uncond", style.BLUE, "-"),
        (94, rf"$|{letter}_c|$ with", "norm_cond", style.ORANGE, (0, (2, 2))),
        (164, rf"$|{letter}_c - {letter}_u|$ difference", "norm_difference", style.GREEN, "-"),
    )
    for x, label, name, color, line in curves:
        values = [getattr(item, name) / math.sqrt(data.size) for item in data.stats]
        norms.plot(steps, values, color=color, linestyle=line, marker=dot, markersize=3.5)
        sheet.text(left + x, y - 11, label, size=style.SMALL, color=color)
    style.set_log_scale(norms)
    sheet.text(right, y - 32, rf"angle between ${letter}_u$ and ${letter}_c$, degrees")
    angle = sheet.axes(right, y, width, height)
    degrees = [item.angle for item in data.stats]
    angle.plot(steps, degrees, color=style.PURPLE, marker=dot, markersize=3.5)
    angle.set(ylim=(0, None))
    for axes, x in ((norms, left), (angle, right)):
        style.set_integer_ticks(axes)
        sheet.note(x + width, y + height + 36, "step", ha="right")
