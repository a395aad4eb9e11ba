"""What the fields of a request of A1111's clients mean, without drawing."""

import contextlib
from pathlib import Path

import pytest
from PIL import Image
from support.a1111 import SMALL, asked, encode

from sdpipe.errors import SdpipeError
from sdpipe.serve.a1111_idle import HIRES_IDLE, IDLE, UNUSED
from sdpipe.serve.answers import RequestError
from sdpipe.serve.inputs import Limits, plan
from sdpipe.settings import RULES

OTHERS = (
    *("cfg_scale", "sampler_name", "sampler_index", "eta", "n_iter", "batch_size", "subseed"),
    *("subseed_strength", "tiling", "enable_hr", "hr_scale", "denoising_strength", "init_images"),
    *("mask", "inpainting_mask_invert", "resize_mode", "override_settings", "force_task_id"),
    *("send_images", "include_init_images", "metadata", "model", "alwayson_scripts"),
    "override_settings_restore_afterwards",
)
"""The fields that have an effect."""


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"seed": -1, "subseed": 5, "subseed_strength": 0}, {}),
        ({"seed": 3, "cfg_scale": 5.5}, {"seed": 3, "g": 5.5}),
        ({"num_inference_steps": 3, "guidance_scale": 4}, {"steps": 3, "g": 4}),
        (
            {"subseed": 5, "subseed_strength": 0.3},
            {"variation_seed": 5, "variation_strength": 0.3},
        ),
        ({"batch_size": 2, "n_iter": 3}, {"n": 6}),
        ({"n": 4, "batch_size": 1, "n_iter": 1}, {"n": 4}),
        ({"tiling": True}, {"seamless": "xy"}),
        ({"sampler_index": "Euler a"}, {"scheduler": "euler_a", "karras": False}),
        (
            {"sampler_name": "Euler", "sampler_index": "Heun", "scheduler": "Automatic"},
            {"scheduler": "euler", "karras": False},
        ),
        (
            {"sampler_name": "Euler Karras", "scheduler": "Automatic"},
            {"scheduler": "euler", "karras": True},
        ),
        (
            {"sampler_name": "DPM++ 2M", "scheduler": "Automatic"},
            {"scheduler": "dpm++", "karras": True},
        ),
        (
            {"sampler_name": "UniPC", "scheduler": "SGM Uniform"},
            {"scheduler": "unipc", "karras": False, "spacing": "trailing"},
        ),
        ({"scheduler": "Karras"}, {"karras": True}),
        ({"sampler_name": "LMS"}, {"scheduler": "lms", "karras": False, "lms_order": 4}),
        (
            {"sampler_name": "LMS", "lms_order": 2, "karras": True},
            {"scheduler": "lms", "karras": True, "lms_order": 2},
        ),
        ({"hires_scale": 2, "denoising_strength": 0.4}, {"hires_scale": 2, "hires_strength": 0.4}),
        (
            {"init_image": "iVBO", "denoising_strength": 0.4},
            {"init_image": "iVBO", "strength": 0.4},
        ),
        (
            {
                "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"},
                "override_settings_restore_afterwards": False,
            },
            {"clip_skip": 1},
        ),
        ({"scheduler": "euler_a"}, {"scheduler": "euler_a"}),
        (
            {"sampler_name": "DDIM", "eta": 0.5},
            {"scheduler": "ddim", "karras": False, "eta": 0.5},
        ),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": 2}),
        ({"clip_skip": 1}, {"clip_skip": 1}),
        ({"hr_upscaler": "Latent", "hr_scale": 2, "denoising_strength": 0.7}, {}),
        (
            {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.4, "hr_upscaler": "None"},
            {"hires_scale": 1.5, "hires_strength": 0.4},
        ),
        ({"guidance_rescale": 0.7, "rng": "cuda"}, {"guidance_rescale": 0.7, "rng": "cuda"}),
        ({"save_images": True, "do_not_save_grid": False, "styles": None}, {}),
    ],
)
def test_fields(fields, settings):
    assert asked(prompt="x", **fields) == {"prompt": "x", "negative_prompt": "", **settings}


def test_an_option_counts_where_a_request_says_nothing():
    assert asked(layer=2)["clip_skip"] == 2
    assert asked(layer=2, override_settings={"CLIP_stop_at_last_layers": 1})["clip_skip"] == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"restore_faces": True}, "restore_faces=true"),
        ({"styles": ["photo"]}, "styles"),
        ({"s_churn": 0.1}, "s_churn"),
        ({"alwayson_scripts": {"ControlNet": {"args": []}}}, "alwayson_scripts"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"refiner_checkpoint": "other"}, "refiner_checkpoint"),
        ({"sampler_name": "DPM adaptive"}, "sampler_name"),
        ({"sampler_index": 3}, "sampler_index"),
        ({"scheduler": "Beta"}, "scheduler"),
        ({"sampler_name": "Euler a", "eta": 0.5}, "eta"),
        ({"n_iter": 0}, "n_iter"),
        ({"n": 3, "batch_size": 2}, "n"),
        ({"batch_size": True}, "batch_size"),
        ({"cfg_scale": 3, "g": 4}, "g"),
        ({"tiling": "yes"}, "tiling"),
        ({"enable_hr": True, "hr_upscaler": "Latent"}, "hr_upscaler"),
        ({"enable_hr": True, "hr_prompt": "pear"}, "hr_prompt"),
        ({"override_settings": {"sd_vae": "other"}}, "override_settings.sd_vae"),
        ({"override_settings": {"new_thing": 1}}, "override_settings.new_thing"),
        ({"override_settings": []}, "override_settings"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}, "clip_skip": 1}, "clip_skip"),
        (
            {
                "override_settings": {"CLIP_stop_at_last_layers": 2},
                "override_settings_restore_afterwards": False,
            },
            "override_settings_restore_afterwards",
        ),
        ({"prompt": "a <lora:pencil:0.8> apple"}, "<lora:pencil:0.8>"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"force_task_id": ""}, "force_task_id"),
        ({"has_image": True}, "init_images"),
        ({"has_image": True, "init_images": ["x", "y"]}, "init_images"),
        ({"has_image": True, "init_images": ["http://127.0.0.1/x.png"]}, "init_images"),
    ],
)
def test_what_has_no_effect_is_refused_by_its_name(fields, named):
    with pytest.raises(RequestError) as caught:
        asked(**fields)
    assert caught.value.status == 422
    assert caught.value.value.startswith(named)


@pytest.mark.parametrize("value", [[], {}, "x", -5.5])
def test_no_value_of_any_field_is_a_failure_of_the_server(value, tiny):
    image = encode(Image.new("RGB", (64, 64)))
    for name in (*IDLE, *HIRES_IDLE, *UNUSED, *RULES, *OTHERS):
        for more in ({"enable_hr": True}, {"init_images": [image]}):
            fields = {**SMALL, **more, name: value}
            with contextlib.suppress(SdpipeError):
                settings = asked(has_image="init_images" in more, **fields)
                plan(tiny, settings, Limits(64 * 64 * 4, 50))


def test_the_guide_names_every_field_without_an_effect():
    guide = (Path(__file__).parents[2] / "docs/guides/serve.md").read_text(encoding="utf-8")
    assert [name for name in (*IDLE, *HIRES_IDLE, *UNUSED) if f"`{name}`" not in guide] == []


@pytest.mark.parametrize(
    ("mode", "fit"), [(0, "stretch"), (1, "crop"), (2, "pad"), (None, "stretch")]
)
def test_resize_mode(mode, fit):
    image = encode(Image.new("RGB", (64, 32)))
    settings = asked(has_image=True, init_images=[image], resize_mode=mode)
    assert settings["fit"] == fit
    assert settings["init_image"].size == (64, 32)
