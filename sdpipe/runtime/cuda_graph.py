"""A U-Net recorded as a CUDA graph."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

MAX_GRAPHS = 2
"""Shapes whose graphs are kept: one with guidance and one without."""

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Recording:
    """The kernels of one call, with the memory that they read their inputs from and write to."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    output: Tensor

    def __call__(self, inputs: Inputs) -> Tensor:
        """Replays the kernels for other inputs of the same shapes."""
        with torch.cuda.device(self.output.device):
            for memory, value in zip(self.inputs, inputs, strict=True):
                memory.copy_(value)
            self.graph.replay()
            return self.output.clone()


def record(unet: UNet2DConditionModel, inputs: Inputs) -> Recording:
    """Records a call of a U-Net with (x, t, prompt_embeds)."""
    inputs, graph = tuple(value.clone() for value in inputs), torch.cuda.CUDAGraph()
    with torch.cuda.device(inputs[0].device):
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):  # the CUDA libraries initialize at the first call
            unet(*inputs)
        torch.cuda.current_stream().wait_stream(side_stream)
        with torch.cuda.graph(graph):
            output = unet(*inputs).sample
    return Recording(graph, inputs, output)


class CUDAGraphUNet:
    """A U-Net whose call on a GPU is a single launch.

    A U-Net is some thousand kernels, which a GPU computes faster than Python can launch them. The
    first call of a shape records them, later calls replay the recording: the same kernels on the
    same numbers give the same bits. The graphs of the last `max_graphs` new shapes are kept, each
    with the memory of one call. A lock keeps threads apart, since a graph has one memory for its
    inputs.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        record: Callable[[UNet2DConditionModel, Inputs], Callable[[Inputs], Tensor]] = record,
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        self.unet = unet
        self._record, self._max_graphs = record, max_graphs
        self._lock = threading.Lock()
        self._recordings: dict[object, Callable[[Inputs], Tensor]] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.unet.dtype

    def __call__(self, x: Tensor, t: Tensor, prompt_embeds: Tensor) -> UNet2DConditionOutput:
        """Calls the U-Net with x (B, C, h, w), a timestep and prompt embeddings (B, L, D)."""
        inputs = (x, t.to(x.device), prompt_embeds)
        key = tuple((value.shape, value.dtype) for value in inputs)
        with self._lock:
            if key not in self._recordings:
                while len(self._recordings) >= self._max_graphs:
                    del self._recordings[next(iter(self._recordings))]
                self._recordings[key] = self._record(self.unet, inputs)
            return UNet2DConditionOutput(sample=self._recordings[key](inputs))
