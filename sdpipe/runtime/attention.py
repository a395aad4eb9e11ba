"""Attention in tiles: torch's own kernel for a CPU does not use the CPU's fastest product."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

TILE = 2**21
"""Scores of attention that are held at once: 4 MiB in bfloat16; half as many take longer."""
TILED_FROM = 2**14
"""Scores of one head below which tiles gain nothing."""
SOME = 128
"""Keys whose scores tell about how large those of all are."""


def is_plain(layer: Attention) -> bool:
    """Whether a layer is attention and nothing else, as all of a Stable Diffusion U-Net are."""
    extras = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "residual_connection")
    return (
        type(layer.processor) is AttnProcessor2_0
        and not any(getattr(layer, name) for name in extras)
        and layer.rescale_output_factor == 1
    )


class TiledAttention:
    """diffusers' AttnProcessor2_0 for plain layers, with `tiled_attention` in its middle."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, D) and, for cross-attention, the text (B, L, D'); returns (B, T, D)."""
        if attention_mask is not None:
            return AttnProcessor2_0()(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, T or L, d)
            for y in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        )
        y = tiled_attention_op(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](y))


def tiled_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, Vaswani et al. (2017), equation 1, for half types on a CPU.

    q is (B, heads, T, d), k and v (B, heads, L, d). Tiles of the T x L scores, so many as a core's
    cache holds, go through two matrix products and what is between them. torch's own kernel for a
    CPU keeps to the same plan but not to the CPU's fastest product: of 4,096 places with heads of
    size 40 it takes twice the time.
    """
    batch, heads, length, size = q.shape
    if length * k.shape[2] < TILED_FROM:
        return F.scaled_dot_product_attention(q, k, v).contiguous()
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    many = length * k.shape[1] > TILE and q.dtype != torch.float16  # whose range is short
    y = _by_powers(q * (size**-0.5 * math.log2(math.e)), k, v) if many else None
    if y is None:
        y = _in_tiles(q * size**-0.5, k, v, lambda scores: scores.softmax(-1))
    return y.unflatten(0, (batch, heads))


def _by_powers(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """The same without a softmax, of q (N, T, d), k and v (N, L, d); None if a power is infinite.

    y = 2^(q k^T - m) v / 2^(q k^T - m) 1 for any number m of a row. Two columns of ones have the
    products do the rest: beside v it sums the weights, beside k it takes m. One pass over the
    scores is left, of three. m is the row's largest score of some of the keys, near that of all.
    """
    some = k[:, :: max(k.shape[1] // SOME, 1)].transpose(1, 2)
    m = torch.bmm(q, some).amax(-1, keepdim=True)
    y = _in_tiles(torch.cat([q, -m], -1), _with_ones(k), _with_ones(v), Tensor.exp2_)
    total = y[..., -1:]
    return y[..., :-1] / total if total.isfinite().all() else None


def _with_ones(x: Tensor) -> Tensor:
    """A column of ones beside x (N, L, d): (N, L, d + 1)."""
    return torch.cat([x, x.new_ones(1).expand(*x.shape[:-1], 1)], -1)


def _in_tiles(q: Tensor, k: Tensor, v: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """weigh(q k^T) v, of so many rows and heads at a time as `TILE` allows."""
    (heads, length, _), k_t = q.shape, k.transpose(1, 2)
    rows = min(length, TILE // k.shape[1])
    together = min(heads, max(TILE // (length * k.shape[1]), 1))
    y = q.new_empty(heads, length, v.shape[-1])
    scores = q.new_empty(together, rows, k.shape[1])
    for head in range(0, heads, together):
        h = slice(head, head + together)
        for row in range(0, length, rows):
            r = slice(row, row + rows)
            tile = scores[: heads - head, : length - row]
            torch.bmm(q[h, r], k_t[h], out=tile)
            torch.bmm(weigh(tile), v[h], out=y[h, r])
    return y


# A compiler takes it whole: what it would make of thousands of tiles is no faster, and takes it
# minutes.
tiled_attention_op = torch.library.custom_op(
    "sdpipe::tiled_attention", tiled_attention, mutates_args=()
)


@tiled_attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape)
