"""Telling rivals apart, against closed forms."""

import pytest
import torch

from sdpipe.training.refinement import hard_negatives as rivals
from sdpipe.training.refinement.hard_negatives import Rivals

ALL = torch.ones(2, dtype=torch.bool)


def four(captions=("one", "two", "three", "four")):
    """Two groups of two: in each, two latents 2 apart."""
    latents = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [5.0, 1.0], [5.0, -1.0]]).view(4, 2, 1, 1)
    return Rivals(latents, [0, 0, 1, 1], list(captions))


def test_the_loss_is_the_cross_entropy_of_distances():
    guess = torch.tensor([[0.9, 0.3], [5.0, 0.02]])
    shown = torch.tensor([0, 3])
    d = 2.0  # of two at x = 1 and -1: a quarter each of 0, 4, 4, 0
    expected = 0.0
    for (x, y), own, other in ((guess[0], (1, 0), (-1, 0)), (guess[1], (5, -1), (5, 1))):
        far = [(x - a) ** 2 + (y - b) ** 2 for a, b in (own, other)]
        p = torch.softmax(-torch.stack(far) / (rivals.NEAR * d), 0)[0]
        expected -= p.log() / 2
    value = four().loss(guess.view(2, 2, 1, 1), shown, ALL)
    assert value == pytest.approx(expected.item(), rel=1e-4)
    exact = four().loss(four().latents(shown), shown, ALL)
    assert exact == pytest.approx(0, abs=1e-6)


def test_those_of_other_groups_and_of_the_same_caption_are_no_rivals():
    guess = torch.tensor([[5.0, 1.0], [5.0, 1.0]]).view(2, 2, 1, 1)  # the third itself
    ours = four()
    assert ours.loss(guess, torch.tensor([0, 0]), ALL) < 0.05  # 1 is on its side of the middle
    twins = four(("one", "two", "same", "same"))
    assert twins.loss(guess, torch.tensor([3, 3]), ALL) == 0
    assert ours.loss(guess, torch.tensor([3, 3]), ALL) > 10


def test_what_is_taken_for_a_rival_is_drawn_more_often():
    ours = four()
    generator = torch.Generator().manual_seed(0)
    guess = ours.latents(torch.tensor([0, 2]))
    for _ in range(20):
        ours.loss(guess, torch.tensor([0, 3]), ALL)  # 0 is found, 3 is not
    assert ours.wrong.tolist() == pytest.approx([0, 1, 1, 1], abs=1e-5)

    def shares(hard):
        drawn = ours.draw(40_000, hard, generator)
        return (torch.bincount(drawn, minlength=4) / len(drawn)).tolist()

    least = rivals.LEAST
    by_wrong = [least / (3 + least), *[1 / (3 + least)] * 3]
    assert shares(1.0) == pytest.approx(by_wrong, abs=0.01)
    assert shares(0.5) == pytest.approx([0.5 * p + 0.125 for p in by_wrong], abs=0.01)


def test_only_noisy_guesses_are_news():
    ours = four()
    guess = ours.latents(torch.tensor([0, 1]))
    ours.loss(guess, torch.tensor([0, 1]), torch.tensor([False, True]))
    assert ours.wrong.tolist() == pytest.approx([1, 1 - rivals.NEWS, 1, 1])
