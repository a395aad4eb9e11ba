"""What several drawings ask of a pipeline: one image's settings and its size."""

from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from sdpipe.plan import plan
from sdpipe.values import format_scale

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline
    from sdpipe.settings import Settings


def settle(pipe: "Pipeline", prompt: str = "", **settings: Any) -> "Settings":
    """The settings of one picture of a prompt, every default filled in, also the seed.

    Raises:
        UsageError: a value breaks its rule, or the model's.
    """
    return plan(prompt, **pipe.components.constraints, **settings)[0]


def sampling(settings: "Settings") -> str:
    """How a picture came from its noise, for the line below a title."""
    assert settings.g is not None
    steps = f"{settings.steps} step{'s' * (settings.steps != 1)}"
    return f"{steps} of {settings.scheduler}, g {format_scale(settings.g, 'g')}"


def brought_to_size(picture: Image.Image, settings: "Settings") -> Image.Image:
    """The middle of a picture in the shape of settings that are settled, scaled to their size."""
    assert settings.width is not None
    assert settings.height is not None
    size = (settings.width, settings.height)
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
