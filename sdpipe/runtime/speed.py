"""Makes the networks fast without changing what they compute.

`Pipeline(speed=False)`, `--no-optimize`, runs them as diffusers loads them. In bfloat16 and
float16 the images then differ in the last digits; in float32 on a CPU they are the same to the bit.
"""

from typing import cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from sdpipe.runtime.attention import use_tiled_attention
from sdpipe.runtime.compiled import CompiledUNet
from sdpipe.runtime.cuda_graph import CUDAGraphUNet

HALF = (torch.bfloat16, torch.float16)
MIN_WIDTH = 8
"""Channels per group from which a CPU's GroupNorm is as fast with channels last."""


def accelerate(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    speed: str,
    device: torch.device,
    *,
    stays: bool = True,
) -> UNet2DConditionModel:
    """Prepares both networks, in place, and returns what the loop calls instead of `unet`.

    `speed` is one of `device.SPEEDS`; "plain" changes nothing. A CUDA graph needs the weights at
    fixed addresses, so a U-Net that does not stay on the GPU gets none.
    """
    if speed == "plain":
        return unet
    to_channels_last(unet, vae, device)
    if device.type == "cpu" and unet.dtype in HALF:
        use_tiled_attention(unet)
    if speed == "compiled":
        return cast(UNet2DConditionModel, CompiledUNet(unet))
    if device.type == "cuda" and stays:
        return cast(UNet2DConditionModel, CUDAGraphUNet(unet))
    return unet


def to_channels_last(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    device: torch.device,
    min_width: int = MIN_WIDTH,
) -> None:
    """Stores the kernels of both networks in channels-last order, in place, where that is faster.

    See `prefers_channels_last`.
    """
    for network in (unet, vae):
        if prefers_channels_last(network, device, unet.dtype, min_width):
            # The largest first: its old memory then has room for the next one.
            kernels = [weight for weight in network.parameters() if weight.dim() == 4]
            for weight in sorted(kernels, key=Tensor.numel, reverse=True):
                weight.data = _channels_last(weight.data)


def prefers_channels_last(
    network: UNet2DConditionModel | AutoencoderKL,
    device: torch.device,
    dtype: torch.dtype,
    min_width: int = MIN_WIDTH,
) -> bool:
    """Whether a network is faster with the channels of a pixel side by side.

    In half precision it is: the matrix units of GPUs and CPUs want that order. On a CPU the
    narrowest group of channels must have at least `min_width`, else GroupNorm loses more time.
    """
    width = network.config.block_out_channels[0] // network.config.norm_num_groups
    return dtype in HALF and (device.type != "cpu" or width >= min_width)


def _channels_last(kernel: Tensor) -> Tensor:
    """A kernel (O, I, H, W) in the memory order (O, H, W, I).

    For a 1 x 1 kernel both orders are the same memory, but a convolution chooses the order of its
    output by the strides, so those are always set.
    """
    _, inputs, height, width = kernel.shape
    strides = (height * width * inputs, 1, width * inputs, inputs)
    laid_out = kernel.contiguous(memory_format=torch.channels_last)
    return laid_out.as_strided(kernel.shape, strides)
