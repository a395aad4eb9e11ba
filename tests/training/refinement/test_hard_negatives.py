"""Hard negatives: the contrastive loss of images, and how they are drawn, against closed forms."""

import pytest
import torch

from sdpipe.training.refinement.hard_negatives import (
    MIN_ERROR,
    MOMENTUM,
    TEMPERATURE,
    HardNegatives,
    sample_subjects,
)

ALL = torch.ones(2, dtype=torch.bool)


def four(captions=("one", "two", "three", "four")):
    """Two groups of two: in each, two latents 2 apart."""
    latents = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [5.0, 1.0], [5.0, -1.0]]).view(4, 2, 1, 1)
    return HardNegatives(latents, [0, 0, 1, 1], list(captions))


def test_the_loss_is_the_cross_entropy_of_distances():
    guess = torch.tensor([[0.9, 0.3], [5.0, 0.02]])
    indices = torch.tensor([0, 3])
    d = 2.0  # of two at x = 1 and -1: a quarter each of 0, 4, 4, 0
    expected = 0.0
    for (x, y), own, other in ((guess[0], (1, 0), (-1, 0)), (guess[1], (5, -1), (5, 1))):
        far = [(x - a) ** 2 + (y - b) ** 2 for a, b in (own, other)]
        p = torch.softmax(-torch.stack(far) / (TEMPERATURE * d), 0)[0]
        expected -= p.log() / 2
    value = four().loss(guess.view(2, 2, 1, 1), indices, ALL)
    assert value == pytest.approx(expected.item(), rel=1e-4)
    exact = four().loss(four().latents(indices), indices, ALL)
    assert exact == pytest.approx(0, abs=1e-6)


def test_images_of_other_groups_and_of_the_same_caption_are_not_compared():
    guess = torch.tensor([[5.0, 1.0], [5.0, 1.0]]).view(2, 2, 1, 1)  # the third itself
    ours = four()
    assert ours.loss(guess, torch.tensor([0, 0]), ALL) < 0.05  # 1 is on its side of the centre
    twins = four(("one", "two", "same", "same"))
    assert twins.loss(guess, torch.tensor([3, 3]), ALL) == 0
    assert ours.loss(guess, torch.tensor([3, 3]), ALL) > 10


def test_images_that_are_mistaken_are_drawn_more_often():
    ours = four()
    generator = torch.Generator().manual_seed(0)
    guess = ours.latents(torch.tensor([0, 2]))
    for _ in range(20):
        ours.loss(guess, torch.tensor([0, 3]), ALL)  # 0 is found, 3 is not
    assert ours.error_rate.tolist() == pytest.approx([0, 1, 1, 1], abs=1e-5)

    def shares(hard_fraction):
        drawn = ours.sample(40_000, hard_fraction, generator)
        return (torch.bincount(drawn, minlength=4) / len(drawn)).tolist()

    least = MIN_ERROR
    by_error = [least / (3 + least), *[1 / (3 + least)] * 3]
    assert shares(1.0) == pytest.approx(by_error, abs=0.01)
    assert shares(0.5) == pytest.approx([0.5 * p + 0.125 for p in by_error], abs=0.01)


def test_only_guesses_from_noisy_latents_update_the_error_rate():
    ours = four()
    guess = ours.latents(torch.tensor([0, 1]))
    ours.loss(guess, torch.tensor([0, 1]), torch.tensor([False, True]))
    assert ours.error_rate.tolist() == pytest.approx([1, 1 - MOMENTUM, 1, 1])


def test_subjects_are_drawn_by_their_squared_error():
    errors = torch.tensor([0.0, 1.0, 2.0])

    def share(hard_fraction, images=31):
        generator = torch.Generator().manual_seed(0)
        drawn = sample_subjects(errors, 20_000, hard_fraction, images, generator)
        assert set(drawn.tolist()) <= set(range(30))  # 30 is a remainder
        assert torch.bincount(drawn // 3).min() > 1700  # of ten images of each
        return (torch.bincount(drawn % 3, minlength=3) / len(drawn)).tolist()

    assert share(0.0) == pytest.approx([1 / 3] * 3, abs=0.015)
    assert share(1.0) == pytest.approx([0, 1 / 5, 4 / 5], abs=0.015)
    assert share(0.6) == pytest.approx([2 / 15, 2 / 15 + 0.12, 2 / 15 + 0.48], abs=0.015)
    few = sample_subjects(errors, 100, 0.0, 2, torch.Generator().manual_seed(0))
    assert set(few.tolist()) == {0, 1, 2}  # one of each subject, even if there are fewer images
