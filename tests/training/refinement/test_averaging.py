"""Averages of weights, in numbers."""

import pytest
import torch
from torch import nn

from sdpipe.training.refinement.averaging import average_cycles, interpolate_weights


def constant(value):
    network = nn.Linear(2, 1)
    for weight in network.parameters():
        nn.init.constant_(weight, value)
    return network


def test_weights_move_a_part_of_the_way():
    network = constant(5.0)
    interpolate_weights(network, constant(1.0), alpha=0.75)
    assert all((weight == 4).all() for weight in network.parameters())


def test_an_alpha_of_1_changes_no_bit():
    torch.manual_seed(0)
    network, start = nn.Linear(50, 50), nn.Linear(50, 50)
    before = network.weight.clone()
    interpolate_weights(network, start, alpha=1.0)
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 4.0), (0.5, 2.0)])
def test_each_cycle_begins_with_the_mean_of_those_before(alpha, expected):
    network, seen = constant(0.0), []

    @torch.no_grad()
    def train(cycle):
        seen.append(network.bias.item())
        for weight in network.parameters():
            weight.fill_((2.0, 4.0, 6.0)[cycle])

    average_cycles(network, 3, alpha, train)
    assert seen == pytest.approx([0, 2, 3])
    assert all((weight == expected).all() for weight in network.parameters())
