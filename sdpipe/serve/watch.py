"""What the page shows of every step: x_t and x_0, and what guidance made them of.

Runs in the drawing thread.
"""

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image

from sdpipe.denoise import Step, predict_x0
from sdpipe.guidance import Guidance
from sdpipe.latents import angle_between
from sdpipe.serve.task import decode_images
from sdpipe.show.preview import LatentPreview

if TYPE_CHECKING:
    from torch import Tensor

    from sdpipe.pipeline import Pipeline
    from sdpipe.serve.task import Task

MOST_UNREAD = 512
"""Events that may wait for a slow reader; steps beyond them are not shown."""

EXACT = 5
"""Steps, evenly spread, at which x_0 is decoded; the last is the image itself."""


@dataclass(frozen=True)
class Shown:
    """A step as the page shows it; plain JSON types."""

    data: dict[str, Any]


class Watch:
    """A model whose U-Net is watched while it draws; its images keep their bits.

    pipe: what draws. One at a time, since the last output is kept here.
    preview: the map of its latents to colours; may be fitted only when it is called for.
    """

    def __init__(self, pipe: "Pipeline", preview: Callable[[], LatentPreview]) -> None:
        self._preview = preview
        self._last: _Call | None = None
        self.pipe = pipe.with_wrapped_unet(lambda unet: _WatchedUNet(unet, self._see))

    def _see(self, call: "_Call") -> None:
        self._last = call

    @cached_property
    def preview(self) -> LatentPreview:
        """The map of this model's latents to colours."""
        return self._preview()

    def show(self, task: "Task") -> Callable[[Step], None]:
        """What makes an event of every step of a task."""

        def on_step(step: Step) -> None:
            if task.num_unread > MOST_UNREAD:
                return
            progress = task.progress
            left = None if progress is None else progress.seconds_left
            for k in range(len(step.images)):
                task.put(Shown({**self._describe(task, step, k), "seconds_left": left}))
            self._last = None

        return on_step

    def _describe(self, task: "Task", step: Step, k: int) -> dict[str, Any]:
        """Image k of the batch of a step."""
        x_0 = step.x0[k : k + 1]
        unit = 1 / math.sqrt(1 + step.sigma_next**2) if step.variance_exploding else 1.0
        shown: dict[str, Any] = {
            "image": step.images[k],
            "index": step.index,
            "total": step.total,
            "sigma": step.sigma,
            "timestep": step.timestep,
            "x_t": self._draw(step.latents[k : k + 1] * unit),
            "x0": self._draw(x_0),
            "preview_error": self.preview.error,
        }
        if _is_exact(step):
            decoded = decode_images(self.pipe.components, x_0)
            shown |= {"exact": to_url(decoded[0]), "off": self.preview.measure(x_0, decoded)}
        if self._last is not None:
            shown |= self._guidance(task, step, k, self._last)
        return shown

    def _guidance(self, task: "Task", step: Step, k: int, call: "_Call") -> dict[str, Any]:
        """The clean latents that both outputs of the U-Net predict, and the angle between them."""
        settings, size = task.images[step.images[k]], len(step.images)
        guidance = Guidance(settings.g, settings.guidance_rescale, settings.guidance_interval)
        g = guidance.at(step.index, step.total, step.sigma)
        if len(call.output) != 2 * size:  # one prediction: there is nothing to compare
            return {"g": g, "only": "uncond" if g == 0 else "cond"}
        kind = self.pipe.components.scheduler_config.get("prediction_type", "epsilon")
        x_in = call.x_in[k : k + 1]
        uncond, cond = call.output[k : k + 1], call.output[size + k : size + k + 1]
        x_0 = [predict_x0(x_in, output, step.sigma, kind) for output in (uncond, cond)]
        return {
            "g": g,
            "uncond": self._draw(x_0[0]),
            "cond": self._draw(x_0[1]),
            "angle": math.degrees(angle_between(uncond, cond)),
        }

    def _draw(self, latents: "Tensor") -> str:
        return to_url(self.preview.draw(latents)[0])


@dataclass(frozen=True, eq=False)
class _Call:
    """A call of the U-Net: its noisy input and its output, float32; B or 2 B images."""

    x_in: "Tensor"
    output: "Tensor"


class _WatchedUNet:
    """Stands before a U-Net and tells of each of its calls."""

    def __init__(self, unet: Any, see: Callable[[_Call], None]) -> None:
        self._unet, self._see_call = unet, see

    def __call__(self, x_in: "Tensor", *args: Any, **kwargs: Any) -> Any:
        output = self._unet(x_in, *args, **kwargs)
        self._see_call(_Call(x_in.float(), output.sample.float()))
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)


def _is_exact(step: Step) -> bool:
    return not step.is_last and step.index in {
        (k + 1) * step.total // (EXACT + 1) for k in range(EXACT)
    }


def to_url(image: Image.Image) -> str:
    """An image as a data URL of a PNG."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
