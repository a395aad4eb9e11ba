"""A U-Net that torch compiles."""

import warnings

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from sdpipe.errors import SdpipeError


class Compiled:
    """A U-Net that torch compiles at the first call of each shape; it shares the weights of `unet`.

    torch keeps what it made for other processes: in $TORCHINDUCTOR_CACHE_DIR, where that is set,
    and else in the system's folder for temporary files.

    In float32 on a CPU what is compiled for the first shape has weights of its own, laid out for
    its convolutions and products once and not at every call: they take as much memory again, and
    torch keeps no more than the kernels. A change of the U-Net's weights after that is not seen.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        # diffusers remembers its answer to which torch this is, and torch warns of such memories.
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        self.unet = unet
        self._may_freeze = unet.device.type == "cpu" and unet.dtype == torch.float32
        self._first: torch.Size | None = None  # the shape whose code has its own weights
        mode = "max-autotune" if unet.device.type == "cuda" else None
        self._call = torch.compile(unet, mode=mode, dynamic=False)

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.unet.dtype

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> UNet2DConditionOutput:
        """The U-Net's answer.

        Raises:
            SdpipeError: torch cannot compile it here.
        """
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor import config

        self._first = self._first or x.shape
        try:
            # As an option of torch.compile it comes too late for the tracer.
            with config.patch(freezing=self._may_freeze and x.shape == self._first):
                return self._call(x, t, text)
        except TorchDynamoException as error:
            why, *_ = str(error).strip().splitlines()
            raise SdpipeError(
                f"the U-Net cannot be compiled: {why}. torch needs a C++ compiler and the headers "
                "of Python for it, on Debian apt install g++ python3-dev; or leave compile out."
            ) from error
