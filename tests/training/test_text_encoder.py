"""What the text encoder learns: fields of the picture, and to say of other words the same."""

import math

import pytest
import torch
from support.captions import Numbers, other_words
from torch import nn

from sdpipe.training import text_encoder as text


def test_a_caption_ends_at_its_mark():
    assert text.ended(torch.tensor([[8, 1, 9, 9], [8, 1, 2, 9]])).tolist() == [
        [False, False, True, True],
        [False, False, False, True],
    ]


def test_captions_in_other_words_are_to_be_told_apart():
    meant = torch.tensor([[[0.0]], [[3.0]], [[1.0]]], requires_grad=True)
    said = torch.tensor([[[0.5]], [[3.0]], [[0.0]]], requires_grad=True)
    alike = torch.eye(3, dtype=torch.bool)
    value = text.confusion(meant, said, alike)
    scale = text.TEMPERATURE * (9 + 1 + 4) / 3

    def p(own, *others):
        return 1 / (1 + sum(math.exp((own**2 - other**2) / scale) for other in others))

    chances = p(0.5, 2.5, 0.5), p(0, 3, 2), p(1, 0, 3)
    assert value.item() == pytest.approx(-sum(map(math.log, chances)) / 3, rel=1e-5)
    value.backward()
    assert meant.grad is None
    assert said.grad[2] < 0  # towards what it means, which is more

    alike[0, 2] = alike[2, 0] = True  # one caption twice: which of the two it is does not matter
    scale = text.TEMPERATURE * (9 + 4) / 2
    chances = p(0.5, 2.5), p(0, 3, 2), p(1, 3)
    value = text.confusion(meant, said, alike)
    assert value.item() == pytest.approx(-sum(map(math.log, chances)) / 3, rel=1e-5)
    assert text.confusion(meant[:1], said[:1], alike[:1, :1]) == 0


def test_a_caption_in_other_words_is_not_to_be_taken_for_one_of_another_batch():
    meant = torch.tensor([[[0.0]], [[3.0]], [[2.0]]])  # the last one is not of the batch
    said = torch.tensor([[[1.5]], [[3.0]]])
    alike = torch.tensor([[True, False, False], [False, True, False]])
    scale = text.TEMPERATURE * 9  # of the batch alone
    rows = [[1.5, 1.5, 0.5], [0.0, 3.0, 1.0]]  # how far each is from its own, then from the others
    chances = [
        math.exp(-(row[0] ** 2) / scale) / sum(math.exp(-(far**2) / scale) for far in row)
        for row in rows
    ]
    expected = -sum(map(math.log, chances)) / 2
    assert text.confusion(meant, said, alike).item() == pytest.approx(expected, rel=1e-5)


def test_other_words_should_say_what_the_plain_ones_said_before():
    loss = other_words(Numbers().requires_grad_(True), kept=2.0, contrast=0.0)
    meant = torch.tensor([[8, 1, 9, 4], [8, 2, 9, 2], [8, 3, 9, 0]])
    said = torch.tensor([[8, 5, 9, 4], [8, 2, 9, 2], [8, 6, 9, 3]])
    about = torch.zeros(3, dtype=torch.long)
    variance = (0 + 8 / 3) / 2  # of 9, 9, 9 and of 4, 2, 0
    # The first is the same behind its end, the second plain, the third 3 off at one of two places.
    value = loss(said, meant, about)
    assert value.item() == pytest.approx(3**2 / 4 / variance)
    value.backward()
    assert loss.before.more.grad is None
    with torch.no_grad():
        loss.encoder.more += 1.0
    kept, learned = 1, (1 + 1 + 1 + 4**2) / 4
    assert loss(said, meant, about).item() == pytest.approx((2 * kept + learned) / variance)
    assert loss(meant, meant, about).item() == pytest.approx(2 * kept / variance)

    apart = other_words(loss.before, kept=1.0, contrast=0.5)(said, meant, about).item()
    before, now = (x[:, 2:, None].float() for x in (meant, said))
    before = torch.cat([before, torch.tensor([[[9.0], [7.0]]])])
    expected = 0.5 * text.confusion(before, now, torch.eye(3, 4, dtype=torch.bool)).item()
    assert apart == pytest.approx(3**2 / 4 / variance + expected)


def test_what_was_said_of_subjects_is_computed_once():
    loss = other_words(Numbers(), [[8, 1, 9, 4], [8, 2, 9, 2]], kept=1.0, contrast=0.3)
    asked, forward = [], loss.before.forward

    def counting(tokens):
        asked.extend(tokens.tolist())
        return forward(tokens)

    loss.before.forward = counting
    meant = torch.tensor([[8, 2, 9, 2], [8, 3, 9, 0], [8, 1, 9, 4]])
    assert torch.equal(loss._before(meant), Numbers()(meant).last_hidden_state)
    assert asked == [[8, 3, 9, 0]]
    loss._before(meant[::2])
    assert len(asked) == 1


def test_what_tells_captions_apart_is_not_lost_in_sixteen_bits():
    """As training has it: outputs that are far from zero, and near each other."""
    generator = torch.Generator().manual_seed(0)
    meant = 30 + torch.randn((40, 8, 16), generator=generator)
    said = meant[:12] + 0.3 * torch.randn((12, 8, 16), generator=generator)
    alike = torch.eye(12, 40, dtype=torch.bool)
    exact = text.confusion(meant.double(), said.double(), alike)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = text.confusion(meant, said, alike)
    distances = torch.cdist(said.double().flatten(1), meant.double().flatten(1)).square()
    own = torch.cdist(*[meant[:12].double().flatten(1)] * 2).square().sum() / (12 * 11)
    expected = torch.log_softmax(-distances / (text.TEMPERATURE * own), 1).diagonal().mean()
    assert exact.item() == pytest.approx(-expected.item(), rel=1e-4)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)


def test_it_is_known_which_subjects_are_still_mistaken():
    plain = [[8, 1, 9, 4], [8, 2, 9, 2], [8, 3, 9, 0]]
    loss = other_words(Numbers(), plain, kept=1.0, contrast=0.3)
    assert loss.wrong.tolist() == [1, 1, 1]
    meant = torch.tensor([plain[0], plain[1], plain[2], plain[2]])
    said = torch.tensor([[8, 5, 9, 4], plain[1], [8, 6, 9, 3], [8, 3, 9, 0]])
    variance = torch.tensor([4.0, 2, 0, 0]).var(correction=0).item() / 2
    loss(said, meant, torch.tensor([0, 1, 2, 2]))
    off = 3**2 / 2 / variance  # of the two places behind its end one is 3 off
    expected = [1 - text.NEWS, 1, 1 + text.NEWS * (off - 1)]
    assert loss.wrong.tolist() == pytest.approx(expected)
    assert "wrong" in loss.state_dict()  # a run that goes on knows it too


def test_each_output_of_the_text_encoder_is_a_field_of_the_picture():
    class Numbers(nn.Module):
        config = type("Config", (), {"hidden_size": 1})

        def forward(self, tokens):
            places = torch.arange(tokens.shape[1]).float()  # each output says where it stands
            return type("O", (), {"last_hidden_state": places.expand(len(tokens), -1)[..., None]})

    loss = text.LatentsFromText(Numbers(), grid=2, channels=3, size=4)
    with torch.no_grad():
        loss.read.weight.fill_(1.0)
        loss.read.bias.zero_()
        guess = loss.guess(torch.zeros(2, 10, dtype=torch.long))
    assert guess.shape == (2, 3, 4, 4)
    fields = torch.tensor([[6.0, 7.0], [8.0, 9.0]])  # the last four of ten, row by row
    expected = fields.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(guess[1, 2], expected)
    assert loss(torch.zeros(2, 10, dtype=torch.long), guess) == 0
