"""The inputs of the drawings: the resolved settings of one image, and an image of their size."""

from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from sdpipe.plan import plan
from sdpipe.values import format_scale

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline
    from sdpipe.settings import ResolvedSettings


def resolve_one(pipe: "Pipeline", prompt: str = "", **settings: Any) -> "ResolvedSettings":
    """The settings of one image, with all defaults and a seed filled in.

    Raises:
        UsageError: a value breaks its rule, or the model's.
    """
    return plan(prompt, **pipe.components.constraints, **settings)[0]


def describe_sampling(settings: "ResolvedSettings") -> str:
    """Steps, scheduler and g, for the line below a title."""
    steps = f"{settings.steps} step{'s' * (settings.steps != 1)}"
    return f"{steps} of {settings.scheduler}, g {format_scale(settings.g, 'g')}"


def crop_to_size(image: Image.Image, settings: "ResolvedSettings") -> Image.Image:
    """The middle of an image, scaled to the width and height of the settings."""
    size = (settings.width, settings.height)
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
