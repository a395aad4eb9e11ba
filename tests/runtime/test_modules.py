from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sdpipe import Pipeline, UsageError, latents_to_pil
from sdpipe.cli.app import main
from sdpipe.runtime import modules as offload
from sdpipe.runtime.modules import at_work

CPU = torch.device("cpu")
NETWORKS = ("text_encoder", "unet", "vae")


@pytest.fixture(scope="module")
def usual():
    return Pipeline("emoji", device="cpu", dtype="float32")


@pytest.fixture
def visits(monkeypatch):
    """Who came and went. Nothing lives on any device."""
    monkeypatch.setattr(offload, "_lives_on", lambda device, network: False)
    return []


@pytest.fixture
def poor(visits):
    """A pipeline whose networks have their weights only where they were brought to a device."""
    pipe = Pipeline("emoji", device="cpu", dtype="float32")
    pipe.components = replace(pipe.components, low_memory=True)
    for name in NETWORKS:
        send_home(getattr(pipe.components, name), name, visits)
    return pipe


def send_home(network, name, visits):
    there = [(t, t.data) for t in network.parameters()]
    for tensor, data in there:
        tensor.data = torch.full_like(data, torch.nan)

    def to(device):
        visits.append(name)
        for tensor, data in there:
            tensor.data = data

    network.to = to


def at_home(network):
    return all(t.isnan().all() for t in network.parameters())


def everybody_is_home(pipe):
    return all(at_home(getattr(pipe.components, name)) for name in NETWORKS)


PICTURE = Image.effect_noise((128, 128), 60).convert("RGB")
HALF = Image.fromarray(np.repeat(np.uint8([[0, 255]]), 64, axis=1).repeat(128, axis=0))


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({}, "text_encoder unet vae"),
        ({"save_int": True, "n": 3, "batch_invariant": True}, "text_encoder unet vae"),
        ({"init_image": PICTURE, "mask_image": HALF, "strength": 0.5}, "text_encoder vae unet vae"),
        ({"hires_scale": 1.5, "hires_strength": 0.5}, "text_encoder unet vae unet vae"),
        ({"seamless": "xy"}, "text_encoder unet vae"),
    ],
)
def test_each_network_is_there_for_its_own_work_alone(usual, poor, visits, settings, order):
    asked = {"seed": 3, "steps": 3, **settings}
    pictures = poor.generate("red apple", **asked).images
    expected = usual.generate("red apple", **asked).images
    assert [*map(np.array_equal, pictures, expected)] == [True] * asked.get("n", 1)
    assert visits == order.split()
    assert everybody_is_home(poor)


def test_a_stream_that_is_left_sends_the_unet_home(poor):
    steps = poor.stream("red apple", seed=3, steps=5)
    next(steps)
    assert not at_home(poor.components.unet)
    steps.close()
    assert everybody_is_home(poor)


def test_runs_side_by_side_share_a_visit(usual, poor, visits):
    one, other = (poor.stream("red apple", seed=seed, steps=3) for seed in (3, 4))
    next(one)
    *_, last = other
    assert not at_home(poor.components.unet)
    *_, end = one
    assert visits == ["text_encoder", "text_encoder", "unet"]
    assert everybody_is_home(poor)
    for seed, step in ((3, end), (4, last)):
        *_, expected = usual.stream("red apple", seed=seed, steps=3)
        assert torch.equal(step.latents, expected.latents)
    with at_work(poor.components.vae, CPU):
        assert latents_to_pil(poor.components.vae, end.latents)


def test_what_does_not_fit_is_at_home(visits):
    network = torch.nn.Linear(2, 2)
    bias = network.bias.data

    def to(device):
        network.weight.data = torch.zeros(2, 2)
        raise torch.OutOfMemoryError

    weight, network.to = network.weight.data, to
    with pytest.raises(torch.OutOfMemoryError), at_work(network, CPU):
        pass
    assert network.weight.data is not None
    assert torch.equal(network.weight, weight)
    assert torch.equal(network.bias, bias)
    network.to = visits.append
    with at_work(network, CPU):
        assert visits == [CPU]


def test_what_lives_on_the_device_stays():
    network = torch.nn.Linear(2, 2)
    network.to = None
    with ExitStack() as stack:
        stack.enter_context(at_work(network, CPU))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_there_is_nothing_to_spare(capsys):
    for arguments in (["--device", "cpu"], []):
        assert main(["generate", "x", "--model", "emoji", "--low-memory", *arguments]) == 2
        told = capsys.readouterr().err
        assert "low_memory=True keeps the model out of a GPU's memory" in told
        assert "device cpu has none of its own; leave it out, or take device cuda" in told


def test_what_is_compiled_has_to_stay():
    with pytest.raises(UsageError, match="compile=True keeps the U-Net on the GPU"):
        Pipeline("emoji", compile=True, low_memory=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_picture_is_the_same_and_nothing_is_left():
    asked = {"seed": 3, "steps": 4}
    expected = Pipeline("emoji", device="cuda").generate("red apple", **asked).images[0]
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    poor = Pipeline("emoji", device="cuda", low_memory=True)
    assert torch.cuda.memory_allocated() == before
    picture = poor.generate("red apple", **asked).images[0]
    assert np.abs(np.int16(picture) - np.int16(expected)).max() <= 1
    assert poor.components.unet.device == CPU
