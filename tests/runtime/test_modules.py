"""Copies share weights and change alone; a network on a visit is there for its own work only."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import tiny_unet
from torch import nn

from sdpipe import Pipeline, latents_to_pil
from sdpipe.cli.app import main
from sdpipe.runtime.modules import copy_sharing_weights, on_device

CPU = torch.device("cpu")
NETWORKS = ("text_encoder", "unet", "vae")


def call(unet):
    x = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return unet(x, torch.tensor(500), torch.ones(1, 77, 16)).sample


def test_a_copy_has_the_same_weights_in_the_same_memory():
    unet = tiny_unet()
    unet.register_buffer("steps", torch.arange(3))
    other = copy_sharing_weights(unet)
    assert other is not unet
    theirs = other.state_dict(keep_vars=True)
    assert all(theirs[name] is tensor for name, tensor in unet.state_dict(keep_vars=True).items())
    assert torch.equal(call(other), call(unet))


def test_what_is_replaced_in_a_copy_stays_there():
    unet = tiny_unet()
    expected, processors = call(unet), unet.attn_processors
    other = copy_sharing_weights(unet)
    other.set_default_attn_processor()
    other.conv_out = nn.Identity()
    assert unet.attn_processors == processors
    assert torch.equal(call(unet), expected)
    assert not torch.equal(call(other)[:, :1], expected[:, :1])


@pytest.fixture(scope="module")
def usual():
    return Pipeline("emoji", device="cpu", dtype="float32")


@pytest.fixture
def visits():
    """The names of the networks that were moved to a device, in order."""
    return []


@pytest.fixture
def poor(visits):
    """A pipeline whose networks have NaN for weights until they are moved to a device."""
    pipe = Pipeline("emoji", device="cpu", dtype="float32")
    pipe.components = replace(pipe.components, low_memory=True)
    for name in NETWORKS:
        send_home(getattr(pipe.components, name), name, visits)
    return pipe


def send_home(network, name, visits):
    on_the_device = [(t, t.data) for t in network.parameters()]
    for tensor, data in on_the_device:
        tensor.data = torch.full_like(data, torch.nan)

    def to(device):
        visits.append(name)
        for tensor, data in on_the_device:
            tensor.data = data

    network.to = to


def at_home(network):
    return all(t.isnan().all() for t in network.parameters())


def all_at_home(pipe):
    return all(at_home(getattr(pipe.components, name)) for name in NETWORKS)


IMAGE = Image.effect_noise((64, 64), 60).convert("RGB")
HALF = Image.fromarray(np.repeat(np.uint8([[0, 255]]), 32, axis=1).repeat(64, axis=0))


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({}, "text_encoder unet vae"),
        (
            {"save_int": True, "n": 3, "batch_invariant": True},
            " ".join(["text_encoder unet vae"] * 3),
        ),
        ({"init_image": IMAGE, "mask_image": HALF, "strength": 0.5}, "text_encoder vae unet vae"),
        ({"hires_scale": 1.5, "hires_strength": 0.5}, "text_encoder unet vae unet vae"),
        ({"seamless": "xy"}, "text_encoder unet vae"),
    ],
)
def test_each_network_is_there_for_its_own_work_alone(usual, poor, visits, settings, order):
    asked = {"seed": 3, "steps": 2, "dim": 64, **settings}
    images = poor.generate("red apple", **asked).images
    expected = usual.generate("red apple", **asked).images
    assert [*map(np.array_equal, images, expected)] == [True] * asked.get("n", 1)
    assert visits == order.split()
    assert all_at_home(poor)


def test_leaving_a_stream_sends_the_unet_home(poor):
    steps = poor.stream("red apple", seed=3, steps=5)
    next(steps)
    assert not at_home(poor.components.unet)
    steps.close()
    assert all_at_home(poor)


def test_runs_side_by_side_share_a_visit(usual, poor, visits):
    one, other = (poor.stream("red apple", seed=seed, steps=3) for seed in (3, 4))
    next(one)
    *_, last = other
    assert not at_home(poor.components.unet)
    *_, end = one
    assert visits == ["text_encoder", "unet", "text_encoder"]
    assert all_at_home(poor)
    for seed, step in ((3, end), (4, last)):
        *_, expected = usual.stream("red apple", seed=seed, steps=3)
        assert torch.equal(step.latents, expected.latents)
    with on_device(poor.components.vae, CPU):
        assert latents_to_pil(poor.components.vae, end.latents)


def test_a_copy_that_shares_the_weights_shares_the_visit(visits):
    network = nn.Linear(2, 2)
    send_home(network, "network", visits)
    copied = copy_sharing_weights(network)
    with on_device(copied, CPU):
        with on_device(network, CPU):
            assert not at_home(network)
        assert not at_home(copied)
    assert at_home(network)


def test_a_network_that_does_not_fit_is_at_home(visits):
    network = nn.Linear(2, 2)
    weight, bias = network.weight.data, network.bias.data

    def to(device):
        network.weight.data = torch.zeros(2, 2)
        raise torch.OutOfMemoryError

    network.to = to
    with pytest.raises(torch.OutOfMemoryError), on_device(network, CPU):
        pass
    assert network.weight.data_ptr() == weight.data_ptr()
    assert network.bias.data_ptr() == bias.data_ptr()
    network.to = visits.append
    with on_device(network, CPU):
        assert visits == [CPU]


def test_a_network_that_is_on_the_device_stays():
    network = nn.Linear(2, 2)
    weight, memory = network.weight, network.weight.data_ptr()
    for _ in range(2):
        with on_device(network, CPU):
            assert network.weight is weight
        assert network.weight.data_ptr() == memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_there_is_nothing_to_spare(capsys):
    for arguments in (["--device", "cpu"], []):
        assert main(["generate", "x", "--model", "emoji", "--low-memory", *arguments]) == 2
        assert "low_memory=True" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_image_is_the_same_and_nothing_is_left():
    asked = {"seed": 3, "steps": 4}
    expected = Pipeline("emoji", device="cuda").generate("red apple", **asked).images[0]
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    poor = Pipeline("emoji", device="cuda", low_memory=True)
    assert torch.cuda.memory_allocated() == before
    image = poor.generate("red apple", **asked).images[0]
    assert np.abs(np.int16(image) - np.int16(expected)).max() <= 1
    assert poor.components.unet.device == CPU
