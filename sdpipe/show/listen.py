"""Hearing what the U-Net says during a run, without touching the one that all runs share."""

from typing import Any

from torch import Tensor


class Listener:
    """Stands in for a U-Net, passes every call on to it, and keeps what it answers.

    outputs: one for each call, in float32 as `denoise.predict` hands it to the loop.
    """

    def __init__(self, unet: Any) -> None:
        self.outputs: list[Tensor] = []
        self._unet = unet

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the U-Net answers."""
        answer = self._unet(*args, **kwargs)
        self.outputs.append(answer.sample.float())
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)
