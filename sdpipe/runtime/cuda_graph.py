"""A U-Net whose call on a GPU is a CUDA graph."""

import threading
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

KEPT = 2


class Graphed:
    """A U-Net whose call on a GPU is a single launch: a CUDA graph.

    A U-Net is some thousand kernels, which a GPU computes faster than Python can ask for them. The
    first call of a shape records them, every other one replays what was recorded: the same kernels
    on the same numbers, so the same bits. Two shapes are kept, with guidance and without; each
    holds the memory of one call.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self._lock = threading.Lock()  # what is recorded has one place for its input
        self._recorded: dict[object, Recorded] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.unet.dtype

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> UNet2DConditionOutput:
        """As the U-Net itself: x (B, C, h, w), a timestep, and the text (B, L, D)."""
        given = (x, t.to(x.device), text)
        key = tuple((y.shape, y.dtype) for y in given)
        with self._lock:
            if key not in self._recorded:
                for old in list(self._recorded)[: 1 - KEPT]:
                    del self._recorded[old]
                self._recorded[key] = record(self.unet, given)
            return UNet2DConditionOutput(sample=self._recorded[key](given))


@dataclass(frozen=True, eq=False)
class Recorded:
    """The kernels of one call, with the places where they find their input and leave the output."""

    graph: torch.cuda.CUDAGraph
    given: tuple[Tensor, ...]
    output: Tensor

    def __call__(self, given: tuple[Tensor, ...]) -> Tensor:
        """The U-Net's output for another input of the same shapes."""
        with torch.cuda.device(self.output.device):
            for place, y in zip(self.given, given, strict=True):
                place.copy_(y)
            self.graph.replay()
            return self.output.clone()


def record(unet: UNet2DConditionModel, given: tuple[Tensor, ...]) -> Recorded:
    """Records a call of a U-Net, (x, t, text)."""
    given, graph = tuple(y.clone() for y in given), torch.cuda.CUDAGraph()
    with torch.cuda.device(given[0].device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # the libraries set themselves up at the first call
            unet(*given)
        torch.cuda.current_stream().wait_stream(beside)
        with torch.cuda.graph(graph):
            output = unet(*given).sample
    return Recorded(graph, given, output)
