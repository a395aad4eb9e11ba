"""A U-Net compiled by torch.compile."""

import warnings

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from sdpipe.errors import SdpipeError


class CompiledUNet:
    """A U-Net that torch compiles at the first call of each shape; it shares the weights of `unet`.

    torch keeps the compiled code for other processes, in $TORCHINDUCTOR_CACHE_DIR or else in the
    system's folder for temporary files.

    In float32 on a CPU the code for the first shape gets a copy of the weights, laid out once for
    its convolutions and products. The copy takes as much memory again and does not see later
    changes of the U-Net's weights, and torch keeps only the kernels for other processes.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        # Harmless: diffusers caches the answer to which version of torch this is.
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        self.unet = unet
        self._may_freeze = unet.device.type == "cpu" and unet.dtype == torch.float32
        self._frozen_shape: torch.Size | None = None  # the shape whose code has its own weights
        mode = "max-autotune" if unet.device.type == "cuda" else None
        self._call = torch.compile(unet, mode=mode, dynamic=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.unet.dtype

    def __call__(self, x: Tensor, t: Tensor, prompt_embeds: Tensor) -> UNet2DConditionOutput:
        """Calls the U-Net with x (B, C, h, w), a timestep and prompt embeddings (B, L, D).

        Raises:
            SdpipeError: torch cannot compile it here.
        """
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor import config

        self._frozen_shape = self._frozen_shape or x.shape
        try:
            # As an option of torch.compile it comes too late for the tracer.
            with config.patch(freezing=self._may_freeze and x.shape == self._frozen_shape):
                return self._call(x, t, prompt_embeds)
        except TorchDynamoException as error:
            reason, *_ = str(error).strip().splitlines()
            raise SdpipeError(
                "the U-Net",
                f"cannot be compiled: {reason.rstrip('.')}",
                "torch needs a C++ compiler and the headers of Python; on Debian run apt install "
                "g++ python3-dev, or leave compile out",
            ) from error
