"""Records the cross-attention of a U-Net during a run.

Averaged over heads, layers and steps as in Tang et al. (2023), "What the DAAM: interpreting Stable
Diffusion using cross attention".
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpipe.runtime.modules import copy_sharing_weights

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class AttentionSums:
    """The sums of the attention of one run, by the number of pixels of a layer.

    Single steps are not kept: each layer adds to the sums.
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._added: dict[int, int] = {}

    def add(self, attention: Tensor) -> None:
        """Adds the attention of one layer in one step, (heads, pixels, L); each row sums to 1."""
        mean = attention.mean(0)  # (pixels, L)
        pixels = len(mean)
        self._sums[pixels] = self._sums.get(pixels, torch.zeros_like(mean)) + mean
        self._added[pixels] = self._added.get(pixels, 0) + 1

    def mean(self, height: int, width: int) -> Tensor:
        """The mean over heads, layers and steps on latents of height x width: (L, h, w).

        Coarser layers are enlarged bicubically, as in DAAM. The L values of a pixel sum to 1, but
        for negative ones from the enlarging, which become 0.
        """
        total = torch.zeros(0)
        for pixels, summed in self._sums.items():
            h, w = layer_shape(pixels, height, width)
            map_ = summed.T.reshape(1, -1, h, w).cpu()  # (1, L, h', w')
            large = F.interpolate(map_, (height, width), mode="bicubic", align_corners=False)
            total = large if not len(total) else total + large
        return (total[0] / sum(self._added.values())).clamp(min=0)


def layer_shape(pixels: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a layer with `pixels`, in a U-Net with an input of height x width."""
    while height * width > pixels:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != pixels:
        raise ValueError(f"no layer has {pixels} pixels")
    return height, width


def record_attention(unet: "UNet2DConditionModel", sums: AttentionSums) -> "UNet2DConditionModel":
    """A copy of a U-Net that shares its weights and adds its cross-attention to `sums`."""
    copy = copy_sharing_weights(unet)
    copy.set_attn_processor({name: _Recorder(p, sums) for name, p in copy.attn_processors.items()})
    return copy


class _Recorder:
    """Wraps an attention processor, and records the attention that it computes."""

    def __init__(self, processor: Any, sums: AttentionSums) -> None:
        self._processor = processor
        self._sums = sums

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None:  # else it is self-attention
            # The last of the batch is conditional: uncond comes first.
            self._sums.add(attention_probs(attn, hidden_states[-1:], encoder_hidden_states[-1:])[0])
        return self._processor(attn, hidden_states, encoder_hidden_states, attention_mask, **more)


def attention_probs(attn: Any, x: Tensor, text: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) of a cross-attention layer, (B, heads, pixels, L), float32.

    `x` is (B, pixels, D of the layer), `text` (B, L, D). Vaswani et al. (2017), equation 1.
    """
    if attn.norm_cross:
        text = attn.norm_encoder_hidden_states(text)
    q, k = (
        t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (attn.to_q(x), attn.to_k(text))
    )
    q, k = (
        (q if attn.norm_q is None else attn.norm_q(q)),
        (k if attn.norm_k is None else attn.norm_k(k)),
    )
    scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1)
