"""Fields of A1111's requests that have no effect here, and the values at which they may stand."""

import json
from collections.abc import Mapping
from typing import Any

from sdpipe.serve.answers import RequestError

NO_EFFECT = "has no effect here"

IDLE: Mapping[str, tuple[Any, ...]] = {
    "styles": ([],),
    "restore_faces": (False,),
    "seed_resize_from_h": (-1, 0),
    "seed_resize_from_w": (-1, 0),
    **dict.fromkeys(("s_churn", "s_tmin", "s_tmax", "s_min_uncond"), (0,)),
    "s_noise": (1,),
    "script_name": ("", "None"),
    "alwayson_scripts": ({},),
    "refiner_checkpoint": ("", "None"),
    "disable_extra_networks": (False,),
    "token_merging_ratio": (0,),
    "token_merging_ratio_hr": (0,),
    "comments": ({},),
    "infotext": ("",),
    "firstphase_width": (0,),
    "firstphase_height": (0,),
    "image_cfg_scale": (0, 1.5),
    "initial_noise_multiplier": (1,),
    **dict.fromkeys(("mask_blur", "mask_blur_x", "mask_blur_y"), (0, 4)),
    "inpainting_fill": (0, 1),
    "inpaint_full_res": (False, True),
    "inpaint_full_res_padding": (0, 32),
}
"""Fields without an effect, and the values at which they may stand; null always may."""

UNUSED = ("save_images", "do_not_save_samples", "do_not_save_grid", "script_args",
          "refiner_switch_at")  # fmt: skip
"""Fields that say nothing here at any value: nothing is saved on the server, and no script runs."""

HIRES_IDLE: Mapping[str, tuple[Any, ...]] = {
    "hr_upscaler": ("None", "Lanczos"),
    "hr_second_pass_steps": (0,),
    "hr_resize_x": (0,),
    "hr_resize_y": (0,),
    "hr_checkpoint_name": ("", "Use same checkpoint"),
    "hr_sampler_name": ("", "Use same sampler"),
    "hr_scheduler": ("", "Use same scheduler"),
    "hr_prompt": ("",),
    "hr_negative_prompt": ("",),
    "hr_additional_modules": ([], ["Use same choices"]),
}
"""The same for a second pass; without `enable_hr` they say nothing at any value, as in A1111."""


def refuse(name: str, value: object, rule: str, remedy: str = "") -> RequestError:
    """An error about a field of a request, with its value as JSON writes it."""
    return RequestError(422, f"{name}={shorten(value)}", rule, remedy, param=name)


def shorten(value: object) -> str:
    """A value as JSON writes it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def drop_idle(fields: dict[str, Any], idle: Mapping[str, tuple[Any, ...]]) -> None:
    """Takes out the fields without an effect. Raises RequestError where one is not idle."""
    for name, values in idle.items():
        if name in fields and (value := fields.pop(name)) not in values:
            told = " or ".join(map(shorten, values))
            raise refuse(name, value, NO_EFFECT, f"leave it out, or send {told}")
