"""What makes the networks fast, and leaves alone what they compute.

`Pipeline(speed=False)`, `--no-optimize`, runs them as diffusers loads them: the same images, but
for the last digits of bfloat16 and float16. In float32 on a CPU nothing differs, not a bit.
"""

from typing import cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from sdpipe.runtime.attention import TiledAttention, is_plain
from sdpipe.runtime.compiled import Compiled
from sdpipe.runtime.cuda_graph import Graphed

HALF = (torch.bfloat16, torch.float16)
WIDE = 8
"""Channels of a group from which a CPU's GroupNorm is as fast with channels last."""


def fast(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    speed: str,
    device: torch.device,
    *,
    stays: bool = True,
) -> UNet2DConditionModel:
    """What the loop is to call in place of `unet`; `speed` is one of `device.SPEEDS`.

    The networks' weights are laid out anew, in place, unless `speed` is "plain". What is recorded
    on a GPU finds its weights where they were, so a U-Net that does not stay there is not.
    """
    if speed == "plain":
        return unet
    lay_out(unet, vae, device)
    if speed == "compiled":
        return cast(UNet2DConditionModel, Compiled(unet))
    graphed = device.type == "cuda" and stays
    return cast(UNet2DConditionModel, Graphed(unet)) if graphed else unet


def lay_out(unet: UNet2DConditionModel, vae: AutoencoderKL, device: torch.device) -> None:
    """Lays out the weights for the device that they will work on, in place.

    In half precision convolutions are fastest where the channels of a pixel lie side by side, on a
    GPU's matrix units as on a CPU's. A CPU attends in tiles, see `tiled_attention`.
    """
    if unet.dtype not in HALF:
        return
    for network in (unet, vae):
        if likes_channels_last(network, device, unet.dtype):
            # The largest first: the place that one leaves then has room for the next.
            kernels = [weight for weight in network.parameters() if weight.dim() == 4]
            for weight in sorted(kernels, key=Tensor.numel, reverse=True):
                weight.data = _channels_last(weight.data)
    if device.type == "cpu":
        for layer in unet.modules():
            if isinstance(layer, Attention) and is_plain(layer):
                layer.set_processor(TiledAttention())


def likes_channels_last(
    network: UNet2DConditionModel | AutoencoderKL, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether a network is faster on a device with channels last; on a CPU a narrow one is not."""
    width = network.config.block_out_channels[0] // network.config.norm_num_groups
    return dtype in HALF and (device.type != "cpu" or width >= WIDE)


def _channels_last(kernel: Tensor) -> Tensor:
    """A kernel (O, I, H, W) laid out as (O, H, W, I).

    Of 1 x 1 both are the same memory, but a convolution answers in the layout that the strides say.
    """
    _, inputs, height, width = kernel.shape
    strides = (height * width * inputs, 1, width * inputs, inputs)
    laid_out = kernel.contiguous(memory_format=torch.channels_last)
    return laid_out.as_strided(kernel.shape, strides)
