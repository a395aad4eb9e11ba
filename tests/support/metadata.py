import json

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdpipe.io import png
from sdpipe.settings import Settings

A1111 = (
    "girl with an artist's beret, (sitting:1.2)\non a chair\n"
    "Negative prompt: ugly, [blurry]\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x768, "
    "Model hash: 45dee52b, Model: realistic, Clip skip: 2, "
    'Lora hashes: "detail: 7c0b, x: y", Version: v1.10.1'
)


INVOKEAI = {
    "generation_mode": "txt2img",
    "positive_prompt": "cabin",
    "negative_prompt": None,
    "width": 512,
    "height": 640,
    "seed": 27,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "steps": 30,
    "scheduler": "dpmpp_2m_k",
    "clip_skip": 0,
    "model": {"key": "6a", "hash": "blake3:ab", "name": "sd15", "base": "sd-1", "type": "main"},
    "loras": [{"model": {"name": "x"}, "weight": 0.6}],
    "vae": {"name": "mse"},
    "app_version": "5.4.2",
}


def picture():
    return Image.radial_gradient("L").resize((32, 16)).convert("RGB")


def own(prompt="red apple", image=None, **values):
    given = {"seed": 7, "g": 3.25, "steps": 30, "dim": 128, "lms_order": 2, **values}
    settings = Settings(prompt=prompt, **given).resolved({})
    model = {"name": "emoji", "revision": None, "variant": None, "sha256": "ab" * 32, "parts": {}}
    machine = {"device": "cpu", "dtype": "float32", "n": 4, "index": 2}
    return png.metadata(settings, model, image=image or picture(), **machine)


def foreign_picture(path, **texts):
    notes = PngInfo()
    for key, text in texts.items():
        key = key.replace("sd_", "sd-")
        notes.add_text(key, text if isinstance(text, str) else json.dumps(text))
    picture().save(path, pnginfo=notes)
    return str(path)


def mine(path, change):
    """A picture with metadata of ours, as `change` left them."""
    told = own()["sdpipe"]
    change(told)
    return foreign_picture(path, sdpipe=told)


def change(*path_and_value):
    *path, last, value = path_and_value

    def apply(told):
        for key in path:
            told = told[key]
        told[last] = value

    return apply
