"""Batches: which pictures and captions, how often, and the same again."""

import random

import pytest
import torch
from PIL import Image

from sdpipe.training import vae
from sdpipe.training.dataset import Captioned, Draws, draw_subjects, squares, unit_variance, words
from sdpipe.training.recipe import Words, load_recipe
from sdpipe.training.tokenizer import train_tokenizer


class Flat:
    """Four pictures of one colour each."""

    size = 16

    def __len__(self):
        return 4

    def picture(self, i):
        return Image.new("RGB", (16, 16), (60 * i, 0, 0))

    any_picture = None

    def caption(self, i):
        return f"number {i}"

    def reworded(self, i, rng):
        return f"{rng.choice(['no', 'nr'])} {i}"


def test_a_batch_is_the_same_again_and_another_in_each_process():
    tokenizer = train_tokenizer(["number no nr 0 1 2 3"] * 2, vocabulary=600, length=16)
    latents = torch.arange(4.0).view(4, 1, 1, 1).half()
    data = Captioned(Flat(), latents, tokenizer)

    def recipe(**words):
        return Words(**{"dropped": 0.0, **words})

    def batch(step, process=0, **words):
        return data.batch(64, recipe(**words), *Draws(5, process).at(step))

    def read(ids):
        return tokenizer.decode(ids, skip_special_tokens=True).split()

    x_0, said = batch(3, reworded=0.25)
    assert x_0.dtype == torch.float32
    for one, again in zip((x_0, said), batch(3, reworded=0.25), strict=True):
        assert torch.equal(one, again)
    assert not torch.equal(x_0, batch(4)[0])
    assert not torch.equal(x_0, batch(3, process=1)[0])
    for z, ids in zip(x_0.flatten().tolist(), said, strict=True):
        assert read(ids)[0] in ("number", "no", "nr")
        assert read(ids)[1] == str(int(z))
    whole, cut = batch(3, reworded=1.0), batch(3, reworded=1.0, merge_dropout=0.9)
    assert (cut[1] != tokenizer.pad_token_id).sum() > (whole[1] != tokenizer.pad_token_id).sum()

    chosen = x_0.flatten().int().tolist()
    said, meant = words(Flat(), chosen, tokenizer, recipe(reworded=0.25), *Draws(5).at(4))
    assert [read(ids) for ids in meant] == [["number", str(i)] for i in chosen]
    assert 0.1 < (said != meant).any(1).float().mean() < 0.4
    assert torch.equal(*words(Flat(), chosen, tokenizer, recipe(), *Draws(5).at(4)))
    empty = tokenizer("", padding="max_length").input_ids
    share = sum(ids.tolist() == empty for ids in batch(3, dropped=0.5)[1]) / 64
    assert 0.3 < share < 0.7


def test_subjects_that_are_still_mistaken_are_drawn_more_often():
    wrong = torch.tensor([0.0, 1.0, 2.0])

    def share(hard, pictures=31):
        generator = torch.Generator().manual_seed(0)
        drawn = draw_subjects(wrong, 20_000, hard, pictures, generator)
        assert set(drawn.tolist()) <= set(range(30))  # 30 is a rest
        assert torch.bincount(drawn // 3).min() > 1700  # of ten pictures of each
        return (torch.bincount(drawn % 3, minlength=3) / len(drawn)).tolist()

    assert share(0.0) == pytest.approx([1 / 3] * 3, abs=0.015)
    assert share(1.0) == pytest.approx([0, 1 / 5, 4 / 5], abs=0.015)
    assert share(0.6) == pytest.approx([2 / 15, 2 / 15 + 0.12, 2 / 15 + 0.48], abs=0.015)
    few = draw_subjects(wrong, 100, 0.0, 2, torch.Generator().manual_seed(0))
    assert set(few.tolist()) == {0, 1, 2}  # one of each, also where there are fewer pictures


def test_squares_are_cut_from_pictures():
    pictures = Flat()
    pictures.any_picture = lambda rng: pictures.picture(rng.randrange(4))
    x = squares(pictures, 8, 12, random.Random(0))
    assert x.shape == (12, 3, 8, 8)
    assert {round((v + 1) * 127.5) for v in x[:, 0].flatten().tolist()} == {0, 60, 120, 180}
    assert (x[:, 1:] == -1).all()


def test_latents_are_scaled_to_unit_variance_and_the_vae_says_so():
    latents = 3 * torch.randn((50, 4, 2, 2), generator=torch.Generator().manual_seed(0)).half()
    autoencoder = vae.build_vae(load_recipe().vae, 128)
    scaled = unit_variance(autoencoder, latents)
    assert scaled.float().std() == pytest.approx(1, abs=1e-3)
    factor = autoencoder.config.scaling_factor
    assert torch.allclose(scaled.float(), latents.float() * factor, rtol=1e-3)
    alone = unit_variance(autoencoder, torch.zeros(1, 4, 2, 2).half())  # nothing varies
    assert torch.isfinite(alone).all()
