"""A picture as it comes about: every step of one, for a filmstrip, a film, or as numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from sdpipe.show.filmstrip import COLUMNS, Column, filmstrip, title_lines
from sdpipe.show.steps import columns

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from sdpipe.denoise import Step
    from sdpipe.pipeline import Pipeline, Result


@dataclass(frozen=True, eq=False)
class Course:
    """One picture and all its steps. result: drawn with `save_int`. vae: decodes its steps."""

    result: "Result"
    vae: "AutoencoderKL"

    def numbers(self) -> dict[str, Any]:
        """What can be said in JSON: sigma and x_t have one entry more than there are steps."""
        steps = self.result.steps
        x_t = [steps[0].input, *(step.latents for step in steps)]
        return {
            "settings": self.result.settings[0].to_dict(),
            "timestep": [step.timestep for step in steps],
            "sigma": [steps[0].sigma, *(step.sigma_next for step in steps)],
            "x_t_std": [_std(x) for x in x_t],
            "x0_std": [_std(step.x0) for step in steps],
        }

    def columns(self, most: int) -> list[Column]:
        """The state before the first step and after each, decoded; `most` of them at most."""
        return columns(self.vae, self.result, 0, most)

    def strip(self) -> Image.Image:
        """Some of the states as a filmstrip."""
        return filmstrip(self.columns(COLUMNS), *title_lines(self.result.settings[0]))


def steps_data(
    pipe: "Pipeline",
    prompt: str,
    *,
    on_step: "Callable[[Step], object] | None" = None,
    **settings: Any,
) -> Course:
    """Draws a picture as `Pipeline.generate` does, and keeps its steps.

    Raises:
        UsageError: a value breaks its rule.
    """
    result = pipe.generate(prompt, save_int=True, on_step=on_step, **settings)
    return Course(result, pipe.components.vae)


def _std(x: Tensor) -> float:
    return float(x.std(correction=0))
