"""Attention in tiles is attention: held against the formula, and against diffusers in a U-Net."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0

from sdpipe import Pipeline
from sdpipe.runtime.attention import TiledAttention, tiled_attention, tiled_attention_op


@pytest.mark.parametrize(
    ("places", "tokens", "size"),
    [(128, 128, 8), (130, 130, 16), (256, 77, 24), (1000, 131, 40), (70, 300, 5)],
)
@pytest.mark.parametrize("tile", [1, 2**10, 2**13, 2**20])
def test_attention_in_tiles_is_the_formula(places, tokens, size, tile):
    q = torch.randn(2, places, 3, size, dtype=torch.float64).transpose(1, 2)
    k, v = (torch.randn(2, tokens, 3, size, dtype=torch.float64).transpose(1, 2) for _ in range(2))
    weights = ((q @ k.transpose(2, 3)) / size**0.5).exp()
    expected = weights @ v / weights.sum(-1, keepdim=True)
    y = tiled_attention(q, k, v, tile=tile, min_scores=0)
    assert torch.allclose(y, expected, atol=1e-12)


@pytest.mark.parametrize(("scale", "error"), [(0, 0.005), (1, 0.01), (5, 0.02), (1000, 0.2)])
def test_scores_of_any_size(scale, error):
    """With a scale of 1000 some scores are above a million, and 2 to such a score is infinite."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 1000, 40, dtype=torch.float64)
    scores = (q * scale) @ (k * scale).transpose(2, 3) / 40**0.5
    y = tiled_attention(q * scale, k * scale, v, tile=2**16)
    assert torch.allclose(y, scores.softmax(-1) @ v, atol=1e-9)

    q, k, v = ((q * scale).bfloat16(), (k * scale).bfloat16(), v.bfloat16())
    exact = (q.double() @ k.double().transpose(2, 3) / 40**0.5).softmax(-1) @ v.double()
    y = tiled_attention(q, k, v, tile=2**16).double()
    assert (y - exact).norm() < error * exact.norm()


def test_a_score_far_above_the_estimate_does_not_overflow():
    """Key 101 is not among those that the largest score of row 5 is estimated from."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 1000, 16, dtype=torch.float64)
    k[..., 101, :] = 1000 * q[..., 5, :]
    scores = q @ k.transpose(2, 3) / 4
    y = tiled_attention(q, k, v, tile=2**16)
    assert torch.allclose(y, scores.softmax(-1) @ v, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("places", [70, 300])
def test_the_operator_for_compilers_is_sound(places, dtype):
    q = torch.randn(2, places, 3, 16, dtype=dtype).transpose(1, 2)
    k, v = (torch.randn(2, 77, 3, 16, dtype=dtype).transpose(1, 2) for _ in range(2))
    torch.library.opcheck(tiled_attention_op, (q, k, v), test_utils="test_schema")
    torch.library.opcheck(tiled_attention_op, (q, k, v), test_utils="test_faketensor")
    assert torch.equal(tiled_attention_op(q, k, v), tiled_attention(q, k, v))


def test_few_scores_go_to_torchs_own_kernel(monkeypatch):
    called = []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v: called.append(q.shape) or v
    )
    few, many = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 256, 8)
    tiled_attention(few, few, few)
    tiled_attention(many, many, many)
    assert called == [few.shape]


@pytest.fixture(scope="module")
def pipes():
    """The built-in model in bfloat16, as diffusers runs it and with every attention in tiles."""
    plain, tiled = (
        Pipeline("emoji", device="cpu", dtype="bfloat16", speed=speed) for speed in (False, True)
    )
    assert not any(isinstance(p, TiledAttention) for p in processors(plain))
    assert all(isinstance(p, TiledAttention) for p in processors(tiled))
    tiled.components.unet.set_attn_processor(TiledAttention(min_scores=0))
    return plain, tiled


def processors(pipe):
    return pipe.components.unet.attn_processors.values()


def test_bfloat16_comes_as_near_to_float32_as_without(pipes, emoji):
    """One call of the U-Net: both round in other places, and neither worse."""
    torch.manual_seed(0)
    x, t = torch.randn(1, 4, 16, 16), torch.tensor(500.0)
    prompt_embeds = torch.randn(1, 48, emoji.components.unet.config.cross_attention_dim)

    @torch.no_grad()
    def call(pipe):
        unet = pipe.components.unet
        return unet(x.to(unet.dtype), t, prompt_embeds.to(unet.dtype)).sample.float()

    exact, plain, tiled = map(call, (emoji, *pipes))
    errors = [float((y - exact).norm() / exact.norm()) for y in (plain, tiled)]
    assert 0 < errors[1] < 1.3 * errors[0]
    assert errors[0] < 0.3
    assert not torch.equal(plain, tiled)


def test_images_with_and_without_tiles_hardly_differ(pipes):
    one, other = (
        np.asarray(pipe.generate("cat", seed=3, steps=2, g=1, dim=64).images[0]).astype(float)
        for pipe in pipes
    )
    assert 0 < np.abs(one - other).mean() < 4


def test_float32_keeps_torchs_own_kernel(emoji):
    assert {type(p) for p in processors(emoji)} == {AttnProcessor2_0}
