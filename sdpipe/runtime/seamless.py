"""Seamless images: convolutions that take the opposite edge for their padding.

    from sdpipe.runtime.seamless import with_circular_padding

    vae = with_circular_padding(pipe.components.vae, "xy")

A U-Net and a VAE learn about an image's edges from the zero padding of their convolutions only.
With circular padding left and right are neighbours ("x"), or top and bottom ("y"), or both ("xy"):
an image that is shifted around the edge is drawn as well as one that is not. A1111 calls this
tiling.
"""

import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from sdpipe.runtime.modules import Module, copy_sharing_weights


class CircularConv2d(nn.Conv2d):
    """A convolution with circular padding along `axes` and zero padding along the others.

    torch's `padding_mode="circular"` knows no single axis.
    """

    axes: str

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), as `nn.Conv2d`."""
        assert not isinstance(self.padding, str)
        rows, columns = self.padding
        for axis, pad in (("x", (columns, columns, 0, 0)), ("y", (0, 0, rows, rows))):
            x = F.pad(x, pad, mode="circular" if axis in self.axes else "constant")
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def with_circular_padding(network: Module, axes: str) -> Module:
    """Copies a network, sharing its weights, with circular padding along `axes` ("x", "y", "xy").

    Of a VAE only the decoder changes: an image to encode has edges.
    """
    network = copy_sharing_weights(network)
    part = network.decoder if isinstance(network, AutoencoderKL) else network
    for module in part.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = CircularConv2d
            assert isinstance(module, CircularConv2d)
            module.axes = axes
    return network
