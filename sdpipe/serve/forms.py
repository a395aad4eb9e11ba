"""The forms of OpenAI's edits: an image, a mask, and fields."""

import asyncio
from typing import TYPE_CHECKING, Any

from sdpipe.serve.answers import RequestError, content_type
from sdpipe.serve.inputs import read_transparency, read_upload
from sdpipe.settings import RULES
from sdpipe.values import parse_bool, parse_int

if TYPE_CHECKING:
    from starlette.datastructures import FormData
    from starlette.requests import Request

OTHER_NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "g",
    "cfg_scale": "g",
    "num_images": "n",
}
"""What clients call our settings."""


async def read_form(request: "Request") -> dict[str, Any]:
    """The fields of a form, typed as in JSON, with the image and the mask.

    Where the mask is transparent the image is redrawn, and without a mask where the image is.

    Raises:
        RequestError: it is no form, has no image, or one that cannot be read.
    """
    kind = content_type(request)
    if kind != "multipart/form-data":
        remedy = "send multipart/form-data"
        raise RequestError(415, f"Content-Type {kind[:80]!r}", "is no form", remedy)
    async with request.form(max_files=4, max_fields=100) as form:
        values = _fields(form)
        files = await _files(form)
    if "image" not in files:
        raise RequestError(400, "image", "is missing", "send the image to edit", param="image")

    def read() -> None:
        values["init_image"] = read_upload("image", files["image"])
        masked = files.get("mask", files["image"])
        mask = read_transparency("mask" if "mask" in files else "image", masked)
        if mask is not None:
            values["mask_image"] = mask
        elif "mask" in files:
            rule, remedy = "is transparent nowhere", "make transparent what is to change"
            raise RequestError(400, "mask", rule, remedy, param="mask")

    await asyncio.to_thread(read)
    return values


def _fields(form: "FormData") -> dict[str, Any]:
    """The texts of a form as what they mean."""
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if not isinstance(value, str):
            continue
        ours = OTHER_NAMES.get(name, name)
        if name in ("stream", "metadata"):
            values[name] = parse_bool(value)
        elif name == "partial_images":
            values[name] = parse_int(value)
        else:
            values[name] = RULES[ours].parse(value) if ours in RULES else value
    return values


async def _files(form: "FormData") -> dict[str, bytes]:
    """The image and the mask of a form; of several images the first is used."""
    files: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            continue
        ours = name.removesuffix("[]")
        if ours not in ("image", "mask"):
            raise RequestError(400, f"file {name[:40]!r}", "is not known", "send image and mask")
        if ours in files:
            rule, remedy = "is there twice", "send one: this model takes no more"
            raise RequestError(400, ours, rule, remedy, param=ours)
        files[ours] = await value.read()
    return files
