"""Pictures that a person hands over, brought to a model's size."""

from PIL import Image, ImageOps


def fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture in the wanted shape, scaled to width x height pixels."""
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
