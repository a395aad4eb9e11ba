"""Distillation of paraphrases, against closed forms."""

import pytest
import torch
from support.captions import NumbersEncoder, distillation

from sdpipe.training.refinement.contrastive import caption_contrast
from sdpipe.training.refinement.distillation import MOMENTUM, is_behind_end


def test_a_caption_ends_at_its_mark():
    assert is_behind_end(torch.tensor([[8, 1, 9, 9], [8, 1, 2, 9]])).tolist() == [
        [False, False, True, True],
        [False, False, False, True],
    ]


def test_the_loss_is_the_error_against_the_teacher_as_a_fraction_of_the_variance():
    loss = distillation(NumbersEncoder(), canonical_weight=2.0, contrastive_weight=0.0)
    canonical = torch.tensor([[8, 1, 9, 4], [8, 2, 9, 2], [8, 3, 9, 0]])
    tokens = torch.tensor([[8, 5, 9, 4], [8, 2, 9, 2], [8, 6, 9, 3]])
    subjects = torch.zeros(3, dtype=torch.long)
    variance = (0 + 8 / 3) / 2  # of 9, 9, 9 and of 4, 2, 0
    # Behind its end the first is equal, the third is 3 off in one of two places; the second is
    # canonical.
    value = loss(tokens, canonical, subjects)
    assert value.item() == pytest.approx(3**2 / 4 / variance)
    value.backward()
    assert loss.teacher.offset.grad is None
    with torch.no_grad():
        loss.encoder.offset += 1.0
    on_canonical, on_paraphrases = 1, (1 + 1 + 1 + 4**2) / 4
    expected = (2 * on_canonical + on_paraphrases) / variance
    assert loss(tokens, canonical, subjects).item() == pytest.approx(expected)
    expected = 2 * on_canonical / variance
    assert loss(canonical, canonical, subjects).item() == pytest.approx(expected)


def test_the_contrastive_loss_is_added_with_its_weight():
    canonical = torch.tensor([[8, 1, 9, 4], [8, 2, 9, 2], [8, 3, 9, 0]])
    tokens = torch.tensor([[8, 5, 9, 4], [8, 2, 9, 2], [8, 6, 9, 3]])
    loss = distillation(NumbersEncoder(), canonical_weight=1.0, contrastive_weight=0.5)
    value = loss(tokens, canonical, torch.zeros(3, dtype=torch.long)).item()
    keys, queries = (x[:, 2:, None].float() for x in (canonical, tokens))
    keys = torch.cat([keys, torch.tensor([[[9.0], [7.0]]])])  # and the subject's
    contrast = caption_contrast(keys, queries, torch.eye(3, 4, dtype=torch.bool)).item()
    variance = (0 + 8 / 3) / 2
    assert value == pytest.approx(3**2 / 4 / variance + 0.5 * contrast)


def test_the_teacher_computes_the_subjects_once():
    subjects = [[8, 1, 9, 4], [8, 2, 9, 2]]
    canonical = torch.tensor([[8, 2, 9, 2], [8, 3, 9, 0], [8, 1, 9, 4]])
    tokens, zeros = canonical.roll(1, 0), torch.zeros(3, dtype=torch.long)
    weights = {"canonical_weight": 1.0, "contrastive_weight": 0.0}
    loss, seen = distillation(NumbersEncoder(), subjects, **weights), []
    loss.teacher.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].tolist()))
    without_cache = distillation(NumbersEncoder(), [[0, 0, 0, 0]] * 2, **weights)
    assert loss(tokens, canonical, zeros) == without_cache(tokens, canonical, zeros)
    assert seen == [[8, 3, 9, 0]]
    loss(tokens[::2], canonical[::2], zeros[::2])
    assert len(seen) == 1


def test_the_error_of_each_subject_follows_its_paraphrases():
    subjects = [[8, 1, 9, 4], [8, 2, 9, 2], [8, 3, 9, 0]]
    loss = distillation(NumbersEncoder(), subjects, canonical_weight=1.0, contrastive_weight=0.3)
    assert loss.error.tolist() == [1, 1, 1]
    canonical = torch.tensor([subjects[0], subjects[1], subjects[2], subjects[2]])
    tokens = torch.tensor([[8, 5, 9, 4], subjects[1], [8, 6, 9, 3], [8, 3, 9, 0]])
    variance = torch.tensor([4.0, 2, 0, 0]).var(correction=0).item() / 2
    loss(tokens, canonical, torch.tensor([0, 1, 2, 2]))
    error = 3**2 / 2 / variance  # of the two places behind the third's end one is 3 off
    expected = [1 - MOMENTUM, 1, 1 + MOMENTUM * (error - 1)]
    assert loss.error.tolist() == pytest.approx(expected)
    assert "error" in loss.state_dict()  # part of the checkpoint
