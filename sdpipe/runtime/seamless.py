"""Pictures that repeat without a seam: convolutions on a surface whose edges meet.

    from sdpipe.runtime.seamless import wrapped

    vae = wrapped(pipe.components.vae, "xy")

All that a U-Net and a VAE know of a picture's edges is the padding of their convolutions. With the
opposite edge for padding, in place of zeros, left and right are neighbours ("x"), so are top and
bottom ("y"), or both ("xy"), and a picture that is moved round the corner is drawn as well as one
that is not. Known from A1111, which calls it tiling.
"""

import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from sdpipe.errors import UsageError
from sdpipe.runtime.twin import Module, twin
from sdpipe.settings import Settings
from sdpipe.values import neighbours


class WrappedConv2d(nn.Conv2d):
    """A convolution whose padding is the opposite edge, along `axes`; zeros along the others."""

    axes: str

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert not isinstance(self.padding, str)
        down, across = self.padding
        for axis, pad in (("x", (across, across, 0, 0)), ("y", (0, 0, down, down))):
            x = F.pad(x, pad, mode="circular" if axis in self.axes else "constant")
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)


def wrapped(network: Module, axes: str) -> Module:
    """A `twin` of a network that knows no edges along `axes`.

    Of a VAE it is the decoder that knows none: a picture that is encoded has its own.
    """
    own = twin(network)
    part = own.decoder if isinstance(own, AutoencoderKL) else own
    for module in part.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = WrappedConv2d
            assert isinstance(module, WrappedConv2d)
            module.axes = axes
    return own


def check_seamless(settings: Settings, factor: int, levels: int) -> None:
    """Refuses sizes at which the edges of the U-Net's coarser levels do not meet.

    `settings` are resolved, `factor` is that of the VAE, `levels` how many the U-Net has, each half
    as fine as the one before.

    Raises:
        UsageError: width or height is not a multiple of the pixels of the coarsest level.
    """
    if settings.seamless is None:
        return
    coarsest = factor * 2 ** (levels - 1)
    first = (settings.width or 0, settings.height or 0)
    for size, with_hires in ((first, ""), (settings.output_size, " with hires_scale")):
        for axis, name, side in zip("xy", ("width", "height"), size, strict=True):
            if axis in settings.seamless and side % coarsest:
                raise UsageError(
                    f"{name}{with_hires}={side} is not a multiple of {coarsest}, so that the "
                    "edges would not meet in this model's U-Net; take "
                    f"{neighbours(side, coarsest)}."
                )
