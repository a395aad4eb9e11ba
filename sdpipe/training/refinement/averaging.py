"""Averages of weights: between two points of a training, and over repetitions of a stage."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


@torch.no_grad()
def interpolate_weights(network: nn.Module, start: nn.Module, alpha: float) -> None:
    """Sets a network's weights to (1 - alpha) start + alpha network.

    WiSE-FT, Wortsman et al. (2022): between the two the network keeps most of what it has learned,
    and more nearly does what it did before.
    """
    for old, new in zip(start.parameters(), network.parameters(), strict=True):
        new.copy_(torch.lerp(old.to(new.device), new, alpha))


def average_cycles(
    networks: nn.Module, cycles: int, alpha: float, train: Callable[[int], None]
) -> None:
    """Calls `train(cycle)` repeatedly, and moves the networks to the mean of the results.

    Each cycle begins with the mean of those before: stochastic weight averaging, Izmailov et al.
    (2018). `alpha` is how far the networks move from their start to the last mean.
    """
    start, mean = copy.deepcopy(networks), AveragedModel(networks)
    for cycle in range(cycles):
        train(cycle)
        mean.update_parameters(networks)
        networks.load_state_dict(mean.module.state_dict())
    interpolate_weights(networks, start, alpha)
