"""Networks as a whole: copies that share their weights, and networks that visit the GPU.

`Pipeline(low_memory=True)`, `--low-memory`, keeps text encoder, U-Net and VAE in main memory and
moves each to the GPU for as long as it works. The GPU then needs room for the largest of them only.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def copy_sharing_weights(network: Module) -> Module:
    """Copies a network but not its weights and buffers, so the copy takes next to no memory.

    All runs of a pipeline share its networks, also at the same time. Layers and attention
    processors can be replaced in such a copy without touching the network that others draw with.
    """
    # `deepcopy` takes what it finds in its memo as copied already.
    memo: dict[int, Any] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, memo)


class Visit:
    """The stay of a network on a device; `users` counts the blocks that need it there."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.users = 0
        self._home = [(t, t.data) for t in chain(network.parameters(), network.buffers())]
        try:
            network.to(device)
        except torch.OutOfMemoryError:
            self.end()
            raise

    def end(self) -> None:
        """Gives the network back the weights in main memory, which were kept: no copy is made."""
        moved = [(t, data) for t, data in self._home if t.data_ptr() != data.data_ptr()]
        for tensor, data in moved:
            tensor.data = data
        # torch would keep the memory of the weights for tensors of the same sizes.
        if moved and torch.cuda.is_available():
            torch.cuda.empty_cache()


_visits: dict[int, Visit] = {}
_lock = threading.Lock()


@contextmanager
def on_device(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Moves a network to a device for the block, and back to main memory after it.

    A network that is on the device already stays there. Blocks of several threads may overlap: the
    network moves back at the end of the last one.

    Raises:
        torch.OutOfMemoryError: the network does not fit; it is in main memory then.
    """
    key = id(next(network.parameters()))  # the same for all copies that share these weights
    with _lock:
        visit = _visits.get(key)
        if visit is None:
            visit = _visits[key] = Visit(network, device)
        visit.users += 1
    try:
        yield
    finally:
        with _lock:
            visit.users -= 1
            if not visit.users:
                del _visits[key]
                visit.end()
