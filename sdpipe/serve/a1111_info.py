"""What A1111's answers tell of images: `info` of those that were drawn, png-info of others."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sdpipe
from sdpipe.errors import SdpipeError
from sdpipe.io.texts import read_texts
from sdpipe.metadata.read import READERS, read_record
from sdpipe.serve.a1111_options import describe, list_vaes
from sdpipe.serve.answers import RequestError
from sdpipe.serve.inputs import as_file
from sdpipe.settings import RULES, SAMPLERS

if TYPE_CHECKING:
    from sdpipe.metadata.record import Record
    from sdpipe.pipeline import Pipeline
    from sdpipe.settings import ResolvedSettings


def write_info(
    name: str,
    pipe: "Pipeline",
    images: "Sequence[ResolvedSettings]",
    infotexts: Sequence[str],
    batch_size: int,
) -> str:
    """The JSON text `info` of an answer, with all keys that typed clients look for.

    name: of the model. images: the settings of each image. infotexts: the `parameters` of each.
    """
    first, model = images[0], describe(name, pipe)
    vae = next((entry["model_name"] for entry in list_vaes(pipe)), None)
    subseeds = [-1 if image.variation_seed is None else image.variation_seed for image in images]
    schedule = "Karras" if first.karras else None
    info = {
        "prompt": first.prompt,
        "all_prompts": [image.prompt for image in images],
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [image.negative_prompt for image in images],
        "seed": first.seed,
        "all_seeds": [image.seed for image in images],
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": first.variation_strength or 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": SAMPLERS[first.scheduler][0],
        "cfg_scale": first.g,
        "steps": first.steps,
        "batch_size": batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model["model_name"],
        "sd_model_hash": model["hash"] or "",
        "sd_vae_name": vae,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": first.strength or first.hires_strength or 0,
        "extra_generation_params": {} if schedule is None else {"Schedule type": schedule},
        "index_of_first_image": 0,
        "infotexts": list(infotexts),
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": first.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": f"sdpipe {sdpipe.__version__}",
    }
    return json.dumps(info)


def read_info(data: bytes) -> dict[str, Any]:
    """What an image, as the bytes of a file, says of itself, whichever program drew it.

    Returns `info`, the text `parameters`; `items`, its other texts; and `parameters`, the settings
    by A1111's names, as texts.

    Raises:
        RequestError: it is no image.
    """
    with as_file(data) as path:
        try:
            items = read_texts(path, READERS.keys())
        except SdpipeError as error:
            raise RequestError(422, "image", error.rule, error.remedy, param="image") from None
        try:
            parameters = _parameters(read_record(path))
        except SdpipeError:  # it tells nothing that is known here
            parameters = {}
    return {"info": items.pop("parameters", ""), "items": items, "parameters": parameters}


def _parameters(record: "Record") -> dict[str, str]:
    """The values of a record by A1111's names."""
    values = record.values
    scheduler = str(values.get("scheduler"))
    named: dict[str, Any] = {
        "Prompt": values.get("prompt", ""),
        "Negative prompt": values.get("negative_prompt", ""),
        "Sampler": SAMPLERS[scheduler][0] if scheduler in SAMPLERS else None,
        "Schedule type": "Karras" if values.get("karras") is True else None,
        "Size-1": values.get("width"),
        "Size-2": values.get("height"),
        **{
            rule.a1111: rule.format(values[key])
            for key, rule in RULES.items()
            if rule.a1111 and values.get(key) is not None
        },
        "Denoising strength": values.get("strength") or values.get("hires_strength"),
        "Model": record.model.get("name"),
        "Model hash": (record.model.get("sha256") or record.model.get("hash") or "")[:10] or None,
        **_texts(record.extra),
    }
    return _texts(named)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items() if value is not None}
