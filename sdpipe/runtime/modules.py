"""Networks that are on the GPU only while they work, and else in the computer's own memory.

`Pipeline(low_memory=True)`, `--low-memory`: text encoder, U-Net and VAE take turns on the device,
which then needs room for the largest of them alone.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import nn


class Visit:
    """The stay of a network on a device, for as long as anybody has work for it there."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.guests = 0
        self._home = [(t, t.data) for t in chain(network.parameters(), network.buffers())]
        try:
            network.to(device)
        except torch.OutOfMemoryError:
            self.end()
            raise

    def end(self) -> None:
        """Gives the network its weights at home again; they never left, so none is copied back."""
        for tensor, data in self._home:
            tensor.data = data
        if torch.cuda.is_available():  # torch would keep the place for tensors of the same sizes
            torch.cuda.empty_cache()


_visits: WeakKeyDictionary[nn.Module, Visit] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def at_work(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Has the network on the device inside of the block; one that lives there just stays.

    It may be at work for several runs and threads at once, and goes home after the last of them.

    Raises:
        torch.OutOfMemoryError: it does not fit; it is at home then.
    """
    with _lock:
        visit: Visit | None = _visits.get(network)
        if visit is None and not _lives_on(device, network):
            visit = _visits[network] = Visit(network, device)
        if visit is not None:
            visit.guests += 1
    try:
        yield
    finally:
        with _lock:
            if visit is not None:
                visit.guests -= 1
                if not visit.guests:
                    del _visits[network]
                    visit.end()


def _lives_on(device: torch.device, network: nn.Module) -> bool:
    return all(tensor.device.type == device.type for tensor in network.parameters())
