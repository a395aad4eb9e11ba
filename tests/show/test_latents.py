import math

import numpy as np
import pytest
import torch
from PIL import Image
from support.drawn import assert_legible
from support.tiny import tiny_model

from sdpipe.latents import pil_to_latents
from sdpipe.pipeline import Pipeline
from sdpipe.show.latents import EncodedImage, latents_data, latents_figure


@pytest.fixture(scope="module")
def image():
    return Image.radial_gradient("L").convert("RGB").resize((200, 100))


def test_the_latents_and_the_decoded_image_are_those_of_the_stages(emoji, image):
    data = latents_data(emoji, image)
    assert torch.equal(data.latents, pil_to_latents(emoji.components.vae, data.image)[0])
    assert data.image.size == data.decoded.size
    a, b = (np.asarray(p, np.float64) for p in (data.image, data.decoded))
    error = ((a - b) ** 2).mean()
    assert data.psnr == pytest.approx(20 * math.log10(255) - 10 * math.log10(error))
    assert data.compression == 48
    largest = abs(a - b).max()
    numbers = data.to_dict()
    assert numbers["largest_difference"] == largest
    assert numbers["channels"][1]["mean"] == pytest.approx(float(data.latents[1].mean()))


def test_an_image_that_is_decoded_without_loss():
    same = Image.new("RGB", (16, 16), "red")
    data = EncodedImage(same, torch.zeros(4, 2, 2), same)
    assert data.psnr == math.inf
    assert_legible(latents_figure(data))


@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize("size", [(128, 128), (96, 32)])
def test_no_text_meets_another(channels, size):
    g = torch.Generator().manual_seed(0)
    latents = torch.randn((channels, size[1] // 8, size[0] // 8), generator=g)
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    data = EncodedImage(Image.new("RGB", size), latents, Image.fromarray(noise))
    assert_legible(latents_figure(data))


def test_a_model_of_another_size(tmp_path, image):
    pipe = Pipeline(tiny_model(tmp_path), device="cpu", dtype="float32")
    data = latents_data(pipe, image, dim=64)
    assert (data.image.size, tuple(data.latents.shape)) == ((64, 64), (4, 8, 8))
