"""The contrastive loss of captions, against closed forms."""

import math

import pytest
import torch

from sdpipe.training.refinement.contrastive import TEMPERATURE, caption_contrast


def test_the_loss_is_the_cross_entropy_of_squared_distances():
    canonical = torch.tensor([[[0.0]], [[3.0]], [[1.0]]], requires_grad=True)
    paraphrases = torch.tensor([[[0.5]], [[3.0]], [[0.0]]], requires_grad=True)
    same = torch.eye(3, dtype=torch.bool)
    value = caption_contrast(canonical, paraphrases, same)
    scale = TEMPERATURE * (9 + 1 + 4) / 3

    def p(own, *others):
        return 1 / (1 + sum(math.exp((own**2 - other**2) / scale) for other in others))

    chances = p(0.5, 2.5, 0.5), p(0, 3, 2), p(1, 0, 3)
    assert value.item() == pytest.approx(-sum(map(math.log, chances)) / 3, rel=1e-5)
    value.backward()
    assert canonical.grad is None
    assert paraphrases.grad[2] < 0  # towards its own caption, which is more

    same[0, 2] = same[2, 0] = True  # equal captions are not compared
    scale = TEMPERATURE * (9 + 4) / 2
    chances = p(0.5, 2.5), p(0, 3, 2), p(1, 3)
    value = caption_contrast(canonical, paraphrases, same)
    assert value.item() == pytest.approx(-sum(map(math.log, chances)) / 3, rel=1e-5)
    assert caption_contrast(canonical[:1], paraphrases[:1], same[:1, :1]) == 0


def test_captions_outside_the_batch_are_negatives_too():
    canonical = torch.tensor([[[0.0]], [[3.0]], [[2.0]]])  # the last is not in the batch
    paraphrases = torch.tensor([[[1.5]], [[3.0]]])
    same = torch.tensor([[True, False, False], [False, True, False]])
    scale = TEMPERATURE * 9  # of the batch alone
    rows = [[1.5, 1.5, 0.5], [0.0, 3.0, 1.0]]  # distances from its own, then from the others
    chances = [
        math.exp(-(row[0] ** 2) / scale) / sum(math.exp(-(far**2) / scale) for far in row)
        for row in rows
    ]
    expected = -sum(map(math.log, chances)) / 2
    assert caption_contrast(canonical, paraphrases, same).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_it_is_precise_in_16_bits():
    """Outputs of a text encoder are far from 0, and near each other."""
    generator = torch.Generator().manual_seed(0)
    canonical = 30 + torch.randn((40, 8, 16), generator=generator)
    paraphrases = canonical[:12] + 0.3 * torch.randn((12, 8, 16), generator=generator)
    same = torch.eye(12, 40, dtype=torch.bool)
    exact = caption_contrast(canonical.double(), paraphrases.double(), same)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = caption_contrast(canonical, paraphrases, same)
    distances = torch.cdist(paraphrases.double().flatten(1), canonical.double().flatten(1)).square()
    own = torch.cdist(*[canonical[:12].double().flatten(1)] * 2).square().sum() / (12 * 11)
    expected = torch.log_softmax(-distances / (TEMPERATURE * own), 1).diagonal().mean()
    assert exact.item() == pytest.approx(-expected.item(), rel=1e-4)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)
