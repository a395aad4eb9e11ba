"""Attention for half precision on a CPU, in tiles that fit into a core's cache.

torch's own kernel for a CPU works in tiles too, but without the CPU's fastest matrix product: for
4,096 places and heads of size 40 it takes twice the time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

TILE = 2**21
"""Scores in a tile: 4 MiB in bfloat16. Half as many take longer."""
MIN_SCORES = 2**14
"""Scores of one head below which tiles gain nothing."""
MAX_ESTIMATE_KEYS = 128
"""Keys whose scores are enough to estimate the largest score of a row."""


def use_tiled_attention(unet: UNet2DConditionModel) -> None:
    """Gives every plain attention layer of a U-Net a `TiledAttention`, in place."""
    for layer in unet.modules():
        if isinstance(layer, Attention) and _is_plain(layer):
            layer.set_processor(TiledAttention())


def _is_plain(layer: Attention) -> bool:
    """Whether a layer is attention and nothing else, as all of a Stable Diffusion U-Net are."""
    extras = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "residual_connection")
    return (
        type(layer.processor) is AttnProcessor2_0
        and not any(getattr(layer, name) for name in extras)
        and layer.rescale_output_factor == 1
    )


@dataclass(frozen=True)
class TiledAttention:
    """diffusers' AttnProcessor2_0 for plain layers, computed by `tiled_attention`."""

    tile: int = TILE
    min_scores: int = MIN_SCORES

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attends from x (B, T, D) to itself, or to prompt embeddings (B, L, D'): (B, T, D)."""
        if attention_mask is not None:
            return AttnProcessor2_0()(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, T or L, d)
            for y in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        )
        y = tiled_attention_op(q, k, v, self.tile, self.min_scores).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](y))


def tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, tile: int = TILE, min_scores: int = MIN_SCORES
) -> Tensor:
    """Computes softmax(q k^T / sqrt(d)) v, Vaswani et al. (2017), equation 1.

    q is (B, heads, T, d), k and v are (B, heads, L, d). The T x L scores of each head are computed
    in tiles of at most `tile` (at least L); with fewer than `min_scores` of them torch's own
    kernel is called.
    """
    batch, heads, length, size = q.shape
    if length * k.shape[2] < min_scores:
        return F.scaled_dot_product_attention(q, k, v).contiguous()
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    several_tiles = length * k.shape[1] > tile
    y = None
    if several_tiles and q.dtype != torch.float16:  # the range of float16 is too short for 2^score
        y = _attend_by_exp2(q * (size**-0.5 * math.log2(math.e)), k, v, tile)
    if y is None:
        y = _attend(q * size**-0.5, k, v, lambda scores: scores.softmax(-1), tile)
    return y.unflatten(0, (batch, heads))


def _attend_by_exp2(q: Tensor, k: Tensor, v: Tensor, tile: int) -> Tensor | None:
    """Attention without a softmax, of q (N, T, d), k and v (N, L, d); None if it overflows.

    For any number m per row, y = 2^(q k^T - m) v / 2^(q k^T - m) 1. Append a column of ones to v,
    so the matmul also returns the sum of weights, and one to k (with -m in q), so it subtracts m.
    That leaves one pass over the scores, of softmax's three. m estimates the largest score of a
    row from some of the keys.
    """
    some_keys = k[:, :: max(k.shape[1] // MAX_ESTIMATE_KEYS, 1)].transpose(1, 2)
    m = torch.bmm(q, some_keys).amax(-1, keepdim=True)
    y = _attend(torch.cat([q, -m], -1), _append_ones(k), _append_ones(v), Tensor.exp2_, tile)
    total = y[..., -1:]
    return y[..., :-1] / total if total.isfinite().all() else None


def _append_ones(x: Tensor) -> Tensor:
    """Appends a column of ones to x: (N, L, d) to (N, L, d + 1)."""
    return torch.cat([x, x.new_ones(1).expand(*x.shape[:-1], 1)], -1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, weigh: Callable[[Tensor], Tensor], tile: int
) -> Tensor:
    """weigh(q k^T) v, for as many rows and heads at a time as make `tile` scores."""
    (heads, length, _), k_t = q.shape, k.transpose(1, 2)
    rows = min(length, max(tile // k.shape[1], 1))
    heads_at_once = min(heads, max(tile // (length * k.shape[1]), 1))
    y = q.new_empty(heads, length, v.shape[-1])
    scores = q.new_empty(heads_at_once, rows, k.shape[1])
    for head in range(0, heads, heads_at_once):
        h = slice(head, head + heads_at_once)
        for row in range(0, length, rows):
            r = slice(row, row + rows)
            block = scores[: heads - head, : length - row]
            torch.bmm(q[h, r], k_t[h], out=block)
            torch.bmm(weigh(block), v[h], out=y[h, r])
    return y


# An operator of its own, so that a compiler leaves it alone: compiling thousands of tiles takes
# minutes and makes them no faster.
tiled_attention_op = torch.library.custom_op(
    "sdpipe::tiled_attention", tiled_attention, mutates_args=()
)


@tiled_attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, tile: int = TILE, min_scores: int = MIN_SCORES) -> Tensor:
    return q.new_empty(q.shape)
