"""Hearing what the U-Net says during a run, without touching the one that all runs share."""

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline


def with_unet(pipe: "Pipeline", unet: Any) -> "Pipeline":
    """A pipeline of the same loaded parts that calls another U-Net; `pipe` does not change.

    It is called as it is: what a GPU replays or a compiler made of it would say nothing.
    """
    twin = copy.copy(pipe)
    twin.components = dataclasses.replace(pipe.components, unet=unet)
    return twin


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
