"""Images with metadata of sdpipe, A1111 and InvokeAI, and changes to it."""

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


def sample_image():
    return Image.radial_gradient("L").resize((32, 16)).convert("RGB")


def our_metadata(prompt="red apple", image=None, **values):
    """What sdpipe writes into the third image of a batch of four."""
    given = {"seed": 7, "g": 3.25, "steps": 30, "dim": 128, "lms_order": 2, **values}
    settings = Settings(prompt=prompt, **given).resolved({})
    model = {"name": "emoji", "revision": None, "variant": None, "sha256": "ab" * 32, "parts": {}}
    machine = {"device": "cpu", "dtype": "float32", "n": 4, "index": 2}
    return png.metadata(settings, model, image=image or sample_image(), **machine)


def foreign_image(path, **texts):
    """An image with texts of other programs."""
    info = PngInfo()
    for key, text in texts.items():
        key = key.replace("sd_", "sd-")
        info.add_text(key, text if isinstance(text, str) else json.dumps(text))
    sample_image().save(path, pnginfo=info)
    return str(path)


def our_image(path, *changes):
    """An image with our metadata, as `changes` left it."""
    written = our_metadata()["sdpipe"]
    for change in changes:
        change(written)
    return foreign_image(path, sdpipe=written)


def change(*path_and_value):
    """A change for `our_image`: the last argument is the new value, the others its path."""
    *path, last, value = path_and_value

    def apply(written):
        for key in path:
            written = written[key]
        written[last] = value

    return apply
