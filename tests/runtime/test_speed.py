"""Accelerated networks compute the same; half precision has its kernels in channels-last order."""

from types import SimpleNamespace

import pytest
import torch
from support.tiny import tiny_model, tiny_unet, tiny_vae, write_weights

from sdpipe import Pipeline, load
from sdpipe.io import png
from sdpipe.metadata.replay import prepare
from sdpipe.metadata.save import metadata_for
from sdpipe.runtime.speed import accelerate, to_channels_last

CPU = torch.device("cpu")


def test_in_float32_not_one_bit_changes(emoji):
    plain = Pipeline("emoji", device="cpu", dtype="float32", speed=False)
    ours = emoji.generate("red apple", seed=3, steps=3).images[0]
    assert ours.tobytes() == plain.generate("red apple", seed=3, steps=3).images[0].tobytes()


def test_only_wide_groups_get_channels_last():
    def network(width, groups):
        layer = torch.nn.Conv2d(4, width, 3).bfloat16()
        layer.config = SimpleNamespace(block_out_channels=(width,), norm_num_groups=groups)
        layer.dtype = torch.bfloat16
        return layer

    wide, narrow = network(64, 8), network(64, 16)
    to_channels_last(wide, narrow, CPU)
    assert wide.weight.is_contiguous(memory_format=torch.channels_last)
    assert narrow.weight.is_contiguous()
    to_channels_last(wide, narrow, CPU, min_width=4)
    assert narrow.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose groups are wide enough for channels last on a CPU."""
    folder = tiny_model(tmp_path_factory.mktemp("wide"))
    for part, network in (
        ("unet", tiny_unet(norm_num_groups=2)),
        ("vae", tiny_vae(norm_num_groups=1)),
    ):
        network.save_config(folder / part)
        stem = folder / part / "diffusion_pytorch_model"
        write_weights(stem, network, None, torch.float32)
    return folder


def test_weights_are_read_into_the_order_that_they_get_later(wide):
    """So the memory for both orders is never needed."""
    read, plain = (load(wide, device="cpu", dtype="bfloat16", for_speed=x) for x in (True, False))
    before = {
        part: {name: weight.stride() for name, weight in getattr(read, part).state_dict().items()}
        for part in ("unet", "vae")
    }
    to_channels_last(plain.unet, plain.vae, CPU)
    for part, strides in before.items():
        for name, weight in getattr(plain, part).state_dict().items():
            assert weight.stride() == strides[name]
            assert torch.equal(weight, getattr(read, part).state_dict()[name])
            if weight.dim() == 4:
                _, inputs, rows, columns = weight.shape
                assert weight.stride() == (inputs * rows * columns, 1, inputs * columns, inputs)


@pytest.mark.parametrize("for_speed", [False, True])
def test_channels_last_stays_from_layer_to_layer(wide, for_speed):
    """A 1 x 1 kernel is the same memory in both orders; the order of its output is not."""
    parts = load(wide, device="cpu", dtype="bfloat16", for_speed=for_speed)
    unet = accelerate(parts.unet, parts.vae, "default", CPU)
    in_another_order = []

    def look(layer, inputs, output):
        if not output.is_contiguous(memory_format=torch.channels_last):
            in_another_order.append(layer)

    convolutions = [layer for layer in unet.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert any(layer.kernel_size == (1, 1) for layer in convolutions)
    for layer in convolutions:
        layer.register_forward_hook(look)
    prompt_embeds = torch.randn(1, 48, unet.config.cross_attention_dim).bfloat16()
    unet(torch.randn(1, 4, 16, 16).bfloat16(), torch.tensor(500.0), prompt_embeds)
    assert not in_another_order


@pytest.mark.filterwarnings("ignore:the latents grew to")  # the tiny model's weights are random
@pytest.mark.parametrize("speed", ["plain", "default"])
def test_the_speed_is_recorded_and_replayed(folder, tmp_path, speed):
    pipe = Pipeline(folder, device="cpu", dtype="bfloat16", speed=speed == "default")
    result = pipe.generate("cat", seed=1, steps=2, dim=64)
    path = png.save(result.images[0], tmp_path / "x.png", metadata_for(result, 0))
    assert png.read(path)["sdpipe"]["speed"] == speed
    job = prepare(path, model=str(folder))
    assert job.speed == speed
    assert job.load().speed == speed
