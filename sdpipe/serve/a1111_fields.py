"""From a request of A1111's clients to settings: what each field means here, and what is idle.

A field that has no effect here is taken at its default, which says nothing, and refused otherwise.
Our own settings go by their own names beside A1111's.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageChops

from sdpipe.metadata.foreign import SCHEDULES, scheduler_settings
from sdpipe.serve.a1111_idle import HIRES_IDLE, IDLE, NO_EFFECT, UNUSED, drop_idle, refuse
from sdpipe.serve.answers import RequestError
from sdpipe.serve.forms import OTHER_NAMES
from sdpipe.serve.inputs import decode_base64, read_transparency, read_upload
from sdpipe.settings import ETA_SCHEDULERS, RANDOM_SCHEDULERS, SAMPLERS, SCHEDULERS, find_scheduler

if TYPE_CHECKING:
    from sdpipe.serve.a1111_options import Options

SCHEDULES_OF_OTHERS = {"discrete": "uniform", "default": ""}
"""Schedules of stable-diffusion.cpp, whose server speaks this interface too."""

FITS = {0: "stretch", 1: "crop", 2: "pad"}
"""Our `fit` for A1111's resize_mode."""

_LORA = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>")


@dataclass
class Asked:
    """What a request asks for.

    settings: by our names, for `inputs.plan`. fields: by setting, A1111's name for it where that
        is another.
    checkpoint: the name of the model; None is the one that the options name.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    checkpoint: object = None
    task_id: str | None = None
    sends_images: bool = True
    sends_init_images: bool = False
    with_metadata: bool = True

    def put(self, setting: str, value: object, name: str) -> None:
        """Keeps a setting that came as the field `name`.

        Raises:
            RequestError: another field has said it already.
        """
        if setting in self.settings and self.settings[setting] != value:
            rule = f"and {self.fields.get(setting, setting)} contradict each other"
            raise RequestError(422, name, rule, "leave one out", param=name)
        self.settings[setting] = value
        if name != setting:
            self.fields[setting] = name


def read(values: Mapping[str, Any], options: "Options", *, has_image: bool) -> Asked:
    """Reads the fields of a request for txt2img, or with `has_image` for img2img.

    Raises:
        RequestError: a field has a value that it cannot have here.
    """
    fields = {name: value for name, value in values.items() if value is not None}
    asked = Asked()
    asked.sends_images = _flag(fields, "send_images", True)
    asked.sends_init_images = _flag(fields, "include_init_images", False)
    asked.with_metadata = _flag(fields, "metadata", True)
    asked.task_id = _task_id(fields)
    for name in UNUSED:
        fields.pop(name, None)
    drop_idle(fields, IDLE)
    _read_overrides(asked, fields, options)
    _read_prompts(asked, fields)
    _read_sampler(asked, fields)
    _read_counts(asked, fields)
    _read_seeds(asked, fields)
    if _flag(fields, "tiling", False):
        asked.put("seamless", "xy", "tiling")
    if has_image:
        _read_images(asked, fields)
    _read_hires(asked, fields, has_image)
    for name, value in fields.items():
        asked.put(OTHER_NAMES.get(name, name), value, name)
    return asked


def _flag(fields: dict[str, Any], name: str, default: bool) -> bool:
    value = fields.pop(name, default)
    if not isinstance(value, bool):
        raise refuse(name, value, "is not true or false")
    return value


def _task_id(fields: dict[str, Any]) -> str | None:
    value = fields.pop("force_task_id", None)
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= 100):
        raise refuse("force_task_id", value, "is no name", "use 1 to 100 characters")
    return value


def _read_overrides(asked: Asked, fields: dict[str, Any], options: "Options") -> None:
    """The options that count for this request alone."""
    overrides = fields.pop("override_settings", {})
    if not isinstance(overrides, dict):
        raise refuse("override_settings", overrides, "is no object", "send {} or leave it out")
    overrides = {name: value for name, value in overrides.items() if value is not None}
    asked.checkpoint = overrides.pop("sd_model_checkpoint", None) or fields.pop("model", None)
    name = "override_settings.CLIP_stop_at_last_layers"
    if (clip_skip := overrides.pop("CLIP_stop_at_last_layers", None)) is not None:
        asked.put("clip_skip", clip_skip, name)
    elif options.clip_skip != 1 and "clip_skip" not in fields:
        asked.put("clip_skip", options.clip_skip, name)
    if "clip_skip" in fields:
        asked.put("clip_skip", fields.pop("clip_skip"), "clip_skip")
    if overrides.pop("forge_additional_modules", []):
        rule = "names parts of a model, and none are loaded by name"
        raise RequestError(422, "override_settings.forge_additional_modules", rule, "leave it out")
    for name, value in overrides.items():
        options.check(name, value, f"override_settings.{name}")
    lasts = not _flag(fields, "override_settings_restore_afterwards", True)
    if lasts and (asked.checkpoint is not None or clip_skip not in (None, options.clip_skip)):
        rule = "would change what the next request draws with"
        remedy = "leave it out, or POST to /sdapi/v1/options"
        raise refuse("override_settings_restore_afterwards", False, rule, remedy)


def _read_prompts(asked: Asked, fields: dict[str, Any]) -> None:
    for name in ("prompt", "negative_prompt"):
        text = fields.pop(name, "")
        if not isinstance(text, str):
            raise refuse(name, text, "is no text")
        if found := _LORA.search(text):
            rule, remedy = "has no effect here", "start the server with --lora FILE in its place"
            raise RequestError(422, f"{found[0][:60]} in the {name}", rule, remedy, param=name)
        asked.put(name, text, name)


def _read_sampler(asked: Asked, fields: dict[str, Any]) -> None:
    """The sampler and its schedule, and eta, whose meaning depends on the sampler."""
    names = {name: fields.pop(name, "") or "" for name in ("sampler_name", "sampler_index")}
    name = "sampler_name" if names["sampler_name"] else "sampler_index"
    sampler, schedule = names[name], fields.pop("scheduler", "")
    schedule = SCHEDULES_OF_OTHERS.get(str(schedule), schedule)
    if not sampler and schedule in SCHEDULERS:
        asked.put("scheduler", schedule, "scheduler")
    else:
        if sampler and (not isinstance(sampler, str) or find_scheduler(sampler)[0] is None):
            remedy = f"use {', '.join(names[0] for names in SAMPLERS.values())}"
            raise refuse(name, sampler, "is no sampler here", remedy)
        if not isinstance(schedule, str) or schedule.lower() not in SCHEDULES:
            remedy = "use Automatic, Karras, Uniform or SGM Uniform"
            raise refuse("scheduler", schedule, "is no schedule here", remedy)
        chosen, _ = scheduler_settings(sampler, schedule)
        if schedule.lower() == "karras" or find_scheduler(sampler)[1]:
            chosen["karras"] = True  # which is refused where the sampler has no such levels
        if schedule.lower().startswith("sgm") and not sampler:
            chosen["spacing"] = "trailing"
        named = {"scheduler": name, "lms_order": name, "karras": "scheduler"}
        for key, value in chosen.items():
            if key not in fields or (value is not False and key != "lms_order"):
                asked.put(key, value, named.get(key, "scheduler"))
    scheduler = asked.settings.get("scheduler")
    if (eta := fields.pop("eta", None)) is None:
        return
    if scheduler in ETA_SCHEDULERS:
        asked.put("eta", eta, "eta")
    elif eta not in ((1,) if scheduler in RANDOM_SCHEDULERS else (0, 1)):
        remedy = "leave it out, or use DDIM or TCD"
        raise refuse("eta", eta, f"{NO_EFFECT} with this sampler", remedy)


def _read_counts(asked: Asked, fields: dict[str, Any]) -> None:
    """The images of a request: n_iter batches of batch_size."""
    given = [name for name in ("n_iter", "batch_size") if name in fields]
    count = 1
    for name in given:
        value = fields.pop(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise refuse(name, value, "is no number of images", "use 1 or more")
        count *= value
    if given and not ("n" in fields and count == 1):
        asked.put("n", count, " * ".join(given))


def _read_seeds(asked: Asked, fields: dict[str, Any]) -> None:
    """Seeds, where -1 is one at random, and variations, which a strength of 0 turns off."""
    seed = fields.pop("seed", -1)
    if seed not in (-1, "-1", ""):
        asked.put("seed", seed, "seed")
    strength, subseed = fields.pop("subseed_strength", 0), fields.pop("subseed", -1)
    if strength == 0:
        return
    asked.put("variation_strength", strength, "subseed_strength")
    if subseed in (-1, "-1", ""):
        subseed = secrets.randbelow(2**32)
    asked.put("variation_seed", subseed, "subseed")


def _read_hires(asked: Asked, fields: dict[str, Any], has_image: bool) -> None:
    """A second pass; without one its fields say nothing, of txt2img denoising_strength too."""
    if not _flag(fields, "enable_hr", False):
        for name in (*HIRES_IDLE, "hr_scale"):
            fields.pop(name, None)
        if fields.keys().isdisjoint(("init_image", "hires_scale")) and not has_image:
            fields.pop("denoising_strength", None)
    else:
        if fields.get("hr_upscaler", "None") not in HIRES_IDLE["hr_upscaler"]:
            remedy = "use Lanczos, by which images are enlarged here"
            raise refuse("hr_upscaler", fields["hr_upscaler"], "is no upscaler here", remedy)
        drop_idle(fields, HIRES_IDLE)
        asked.put("hires_scale", fields.pop("hr_scale", 2), "hr_scale")
    if "denoising_strength" in fields:
        setting = "strength" if has_image or "init_image" in fields else "hires_strength"
        asked.put(setting, fields.pop("denoising_strength"), "denoising_strength")


def _read_images(asked: Asked, fields: dict[str, Any]) -> None:
    """The image to begin with and its mask, white where it is redrawn."""
    images = fields.pop("init_images", None)
    if images is None and "init_image" in fields:
        images = [fields.pop("init_image")]
    if not isinstance(images, list) or len(images) != 1:
        rule = "are missing" if not images else "are not one image"
        remedy = "send a list with one image as Base64"
        raise RequestError(422, "init_images", rule, remedy, param="init_images")
    image = read_upload("init_images", decode_base64("init_images", images[0]))
    asked.put("init_image", image, "init_images")
    inverts = fields.pop("inpainting_mask_invert", 0)
    if inverts not in (0, 1):
        raise refuse("inpainting_mask_invert", inverts, "is not 0 or 1")
    if mask := fields.pop("mask", None):
        drawn = _read_mask(decode_base64("mask", mask))
        asked.put("mask_image", ImageChops.invert(drawn) if inverts else drawn, "mask")
    mode = fields.pop("resize_mode", 0)
    if not isinstance(mode, int) or mode not in FITS:
        remedy = "use 0 (stretch), 1 (crop) or 2 (pad)"
        raise refuse("resize_mode", mode, "is not known here", remedy)
    if "fit" not in fields:
        asked.put("fit", FITS[mode], "resize_mode")


def _read_mask(data: bytes) -> Image.Image:
    """A mask, L: what is opaque, if a part of it is transparent, else what is bright."""
    transparency = read_transparency("mask", data)
    if transparency is None:
        return read_upload("mask", data, "black").convert("L")
    return transparency.point([255 * (level < 127) for level in range(256)])
