"""A network beside another one, with the same weights, that may be changed."""

import copy
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def twin(network: Module) -> Module:
    """A copy of a network that shares all weights with it, so that it takes next to no memory.

    A network is one for all runs of a pipeline, also at the same time. What is exchanged in the
    copy, layers or attention processors, leaves it as it is, whoever else is drawing with it,
    whatever goes wrong.
    """
    # What `deepcopy` finds here it takes as copied already.
    shared: dict[int, Any] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)
