"""Requests of A1111's clients, and images as they travel."""

import base64
import io

from PIL import Image

from sdpipe.serve import Server
from sdpipe.serve.a1111_fields import read
from sdpipe.serve.a1111_options import Options

SMALL = {"prompt": "red apple", "width": 64, "height": 64, "steps": 2}


def decode(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def encode(image):
    image.save(buffer := io.BytesIO(), "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def asked(*, has_image=False, layer=1, **fields):
    """The settings that a request comes to."""
    options = Options(Server(list))
    options.clip_skip = layer
    return read(fields, options, has_image=has_image).settings
