"""The built-in model in place of v1-4, where no model was asked for and v1-4 can't be had.

Of the command line alone: from Python, `Pipeline()` raises a ModelError then.
"""

from typing import Any

from sdpipe.cli import console
from sdpipe.components import inspect_model
from sdpipe.errors import ModelError
from sdpipe.loading.layout import PARTS
from sdpipe.loading.locate import BUILT_IN, chosen_model, find_model

SIZES = ("dim", "width", "height")


def fall_back(weights: dict[str, Any], dtype: str, settings: dict[str, Any]) -> bool:
    """Chooses the built-in model if v1-4 is the default and can't be had, and says so.

    weights: the arguments of `Pipeline`; gets the model's name.
    settings: of the images, by name; loses a size, for the built-in model draws in its own.

    Returns whether it did. Downloads v1-4 where it is not cached.
    """
    parts = [part for part in PARTS if weights.get(part) is None]
    name = default_model(weights["model"], *parts, full_precision=dtype == "float32")
    if name == weights["model"]:
        return False
    weights["model"] = name
    built_in = inspect_model(name)
    assert built_in is not None
    own = built_in.defaults()
    size = f"{own['width']} x {own['height']}"
    for side in SIZES:
        if settings.get(side) not in (None, own.get(side, own["width"])):
            console.print_status(f"--{side} {settings[side]} is left out: {name} draws {size}.")
        if side in settings:
            settings[side] = None
    return True


def default_model(model: str | None, *parts: str, full_precision: bool = False) -> str | None:
    """The model to load: the one given, else None for the default, else the built-in one.

    parts: what is needed of it.
    """
    if model is not None or chosen_model():
        return model
    try:
        with console.status("looking for the model ..."):
            find_model(parts=parts, full_precision=full_precision)
    except ModelError as error:
        name = BUILT_IN[0]
        console.print_status(
            f"{error.value} {error.rule}; the built-in model, {name}, takes its place, at its own "
            "size."
        )
        return name
    return None
