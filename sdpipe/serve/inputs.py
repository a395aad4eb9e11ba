"""From what a request says to what is drawn: the settings by their names, images from their bytes.

Nothing that a request says is a path or an address: images come with it, models were loaded before.
"""

import base64
import binascii
import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageChops

from sdpipe.errors import SdpipeError
from sdpipe.io.pixels import read_image
from sdpipe.serve.answers import RequestError
from sdpipe.settings import RULES, our_name

if TYPE_CHECKING:
    from sdpipe.canvas import Canvas
    from sdpipe.pipeline import Pipeline
    from sdpipe.settings import ResolvedSettings

MAX_IMAGES = 64
"""Of one request."""

NOT_OURS = ("save_int",)
"""Settings that mean nothing here: clients have streams."""

IMAGES = ("init_image", "mask_image")
"""Settings that are images: a text is never the name of a file."""


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for.

    pixels: of all its images together. steps: of each.
    """

    pixels: int
    steps: int


def plan(
    pipe: "Pipeline", values: Mapping[str, Any], limits: Limits
) -> "tuple[list[ResolvedSettings], Canvas | None]":
    """The settings of every image of a request, and the image that they begin with.

    values: settings by their names; init_image and mask_image are PIL images, or Base64.

    Raises:
        UsageError: a value breaks its rule. RequestError: the request asks for too much.
    """
    values = dict(values)
    prompt = values.pop("prompt", None)
    if not isinstance(prompt, str):
        value = "prompt" if prompt is None else f"prompt, of the type {type(prompt).__name__},"
        rule = "is missing" if prompt is None else "is no text"
        raise RequestError(400, value, rule, "say what the image shows", param="prompt")
    for name, value in values.items():
        if name in NOT_OURS or name not in RULES:
            raise RequestError(400, f"{name[:80]!r}", "is no setting", _hint(name), param=name[:80])
        if name in IMAGES and value is not None and not isinstance(value, Image.Image):
            background = "black" if name == "mask_image" else "white"
            values[name] = read_upload(name, decode_base64(name, value), background)
        elif isinstance(value, list) and name != "seed":
            values[name] = tuple(value)
    steps, seeds, n = values.get("steps"), values.get("seed"), values.get("n", 1)
    count = len(seeds) if isinstance(seeds, list) else n
    if isinstance(count, int) and count > MAX_IMAGES:
        rule = f"is more than the {MAX_IMAGES} images of a request"
        raise RequestError(400, f"n={count}", rule, "ask several times", param="n")
    if isinstance(steps, int) and steps > limits.steps:
        rule = f"is more than the {limits.steps} that this server takes"
        raise RequestError(400, f"steps={steps}", rule, "use fewer", param="steps")
    images, canvas = pipe.plan(prompt, **values)
    width, height = images[0].output_size
    if (pixels := len(images) * width * height) > limits.pixels:
        raise RequestError(
            400,
            f"{len(images)} x {width} x {height} pixels",
            f"are {pixels}, more than the {limits.pixels} of a request",
            "ask for fewer or smaller images",
            param="n" if len(images) > 1 else "width",
        )
    if images[0].steps > limits.steps:
        rule = f"is more than the {limits.steps} that this server takes"
        raise RequestError(400, f"steps={images[0].steps}", rule, "use fewer", param="steps")
    return images, canvas


def _hint(name: str) -> str:
    ours = our_name(name)
    if ours is not None and set(ours.split(" and ")) <= set(RULES):
        return f"here it is called {ours}"
    return ""


def decode_base64(name: str, text: object) -> bytes:
    """The bytes of Base64, with or without the head of a data URL.

    Raises:
        RequestError: it is none; an address is never fetched.
    """
    if not isinstance(text, str):
        raise RequestError(422, name, "is not Base64 of an image file", param=name)
    if text.lstrip()[:8].lower().startswith(("http:", "https:", "file:", "ftp:")):
        rule, remedy = "is an address, and none is fetched", "send the image as Base64"
        raise RequestError(422, name, rule, remedy, param=name)
    _, comma, rest = text.partition(",")
    body = rest if comma and text.startswith("data:") else text
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(422, name, "is not Base64 of an image file", param=name) from None


def read_upload(name: str, data: bytes, background: str = "white") -> Image.Image:
    """An image that came as the bytes of a file: RGB, upright; see `pixels.read_image`.

    It is read from a file for a moment, since that reader has all bounds.

    Raises:
        RequestError: it is no image, or too large a one.
    """
    with as_file(data) as path:
        try:
            return read_image(path, background)
        except SdpipeError as error:
            raise RequestError(422, name, error.rule, error.remedy, param=name) from None


@contextlib.contextmanager
def as_file(data: bytes) -> Iterator[str]:
    """The path of a file that holds these bytes for as long as the block lasts."""
    with tempfile.NamedTemporaryFile(prefix="sdpipe-", delete=False) as file:
        file.write(data)
    try:
        yield file.name
    finally:
        os.unlink(file.name)


def read_transparency(name: str, data: bytes) -> Image.Image | None:
    """White where an image that came as bytes is transparent, L; None where it is nowhere.

    It is the difference that the colour behind the image makes.

    Raises:
        RequestError: as `read_upload`.
    """
    behind = [read_upload(name, data, background) for background in ("white", "black")]
    transparency = ImageChops.difference(*behind).getchannel(0)
    return transparency if transparency.getextrema()[1] else None
