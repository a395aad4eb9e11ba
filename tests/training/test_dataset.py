"""Batches of images and captions: their distribution, and that they repeat."""

import random

import pytest
import torch
from PIL import Image

from sdpipe.training.dataset import (
    CaptionedLatents,
    StepRng,
    draw_captions,
    random_crops,
    scale_to_unit_variance,
)
from sdpipe.training.networks import build_vae
from sdpipe.training.recipe import Captions
from sdpipe.training.recipe_file import load_recipe
from sdpipe.training.tokenizer import train_tokenizer


class Uniform:
    """Four images of one colour each."""

    size = 16

    def __len__(self):
        return 4

    def image(self, i):
        return Image.new("RGB", (16, 16), (60 * i, 0, 0))

    def caption(self, i):
        return f"number {i}"

    def paraphrase(self, i, rng):
        return f"{rng.choice(['no', 'nr'])} {i}"


def test_a_batch_repeats_and_differs_in_each_process():
    tokenizer = train_tokenizer(["number no nr 0 1 2 3"] * 2, vocab_size=600, max_length=16)
    latents = torch.arange(4.0).view(4, 1, 1, 1).half()
    data = CaptionedLatents(Uniform(), latents, tokenizer)

    def captions(**changes):
        return Captions(**{"caption_dropout": 0.0, **changes})

    def batch(step, process=0, **changes):
        return data.batch(64, captions(**changes), *StepRng(5, process).at(step))

    def read(ids):
        return tokenizer.decode(ids, skip_special_tokens=True).split()

    x_0, tokens = batch(3, paraphrase_fraction=0.25)
    assert x_0.dtype == torch.float32
    for one, again in zip((x_0, tokens), batch(3, paraphrase_fraction=0.25), strict=True):
        assert torch.equal(one, again)
    assert not torch.equal(x_0, batch(4)[0])
    assert not torch.equal(x_0, batch(3, process=1)[0])
    for z, ids in zip(x_0.flatten().tolist(), tokens, strict=True):
        assert read(ids)[0] in ("number", "no", "nr")
        assert read(ids)[1] == str(int(z))
    whole, split = (
        batch(3, paraphrase_fraction=1.0),
        batch(3, paraphrase_fraction=1.0, bpe_dropout=0.9),
    )
    assert (split[1] != tokenizer.pad_token_id).sum() > (whole[1] != tokenizer.pad_token_id).sum()

    chosen = x_0.flatten().int().tolist()
    tokens, canonical = draw_captions(
        Uniform(), chosen, tokenizer, captions(paraphrase_fraction=0.25), *StepRng(5).at(4)
    )
    assert [read(ids) for ids in canonical] == [["number", str(i)] for i in chosen]
    assert 0.1 < (tokens != canonical).any(1).float().mean() < 0.4
    assert torch.equal(*draw_captions(Uniform(), chosen, tokenizer, captions(), *StepRng(5).at(4)))
    empty = tokenizer("", padding="max_length").input_ids
    share = sum(ids.tolist() == empty for ids in batch(3, caption_dropout=0.5)[1]) / 64
    assert 0.3 < share < 0.7


def test_crops_are_parts_of_images():
    images = Uniform()
    images.augmented_image = lambda rng: images.image(rng.randrange(4))
    x = random_crops(images, 8, 12, random.Random(0))
    assert x.shape == (12, 3, 8, 8)
    assert {round((v + 1) * 127.5) for v in x[:, 0].flatten().tolist()} == {0, 60, 120, 180}
    assert (x[:, 1:] == -1).all()


def test_latents_are_scaled_to_unit_variance_and_the_vae_has_the_factor():
    latents = 3 * torch.randn((50, 4, 2, 2), generator=torch.Generator().manual_seed(0)).half()
    vae = build_vae(load_recipe().vae, 128)
    scaled = scale_to_unit_variance(vae, latents)
    assert scaled.float().std() == pytest.approx(1, abs=1e-3)
    factor = vae.config.scaling_factor
    assert torch.allclose(scaled.float(), latents.float() * factor, rtol=1e-3)
    constant = scale_to_unit_variance(vae, torch.zeros(1, 4, 2, 2).half())
    assert torch.isfinite(constant).all()
