"""The tokenizer: CLIP's layout, learned from captions, and BPE-dropout."""

import random

import torch

from sdpipe.training.tokenizer import BPEDropout, train_tokenizer


def test_a_tokenizer_has_the_layout_of_clip():
    captions = ["red apple", "red car", "green apple on a red background"] * 3
    tokenizer = train_tokenizer(captions, vocab_size=540, max_length=10)
    assert len(tokenizer) <= 540
    ids = tokenizer("Red apple", padding="max_length", truncation=True).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[:4] == [
        "<|startoftext|>",
        "red</w>",
        "apple</w>",
        "<|endoftext|>",
    ]
    assert len(ids) == 10
    assert tokenizer.convert_ids_to_tokens([0, 256]) == ["!", "!</w>"]
    assert tokenizer.decode(tokenizer("zebra ñ").input_ids, skip_special_tokens=True) == "zebra ñ"


def test_a_tokenizer_learns_from_the_words_that_it_splits():
    captions = [f"A photo of a cat, no. {i}, sitting." for i in range(20)]
    tokenizer = train_tokenizer(captions, vocab_size=4096, max_length=20)
    words = tokenizer.convert_ids_to_tokens(tokenizer("cat, sitting.").input_ids)[1:-1]
    assert words == ["cat</w>", ",</w>", "sitting</w>", ".</w>"]


def test_a_tokenizer_learns_from_anything_that_people_write():
    rng = random.Random(0)
    letters = (
        "abc",
        "aab",
        "0123456789",
        "äöüß",
        "日本語",
        "👨\u200d👩🎉",
        "'s-.,!\"<|>",
        "\t\x00",
        "é",
    )

    def word():
        return "".join(rng.choice(rng.choice(letters)) for _ in range(rng.randint(1, 8)))

    for vocab_size in (514, 515, 600, 4096):
        captions = [" ".join(word() for _ in range(5)) for _ in range(30)] + ["a <|endoftext|> b"]
        tokenizer = train_tokenizer(captions, vocab_size, max_length=24)
        assert len(tokenizer) <= vocab_size
        cut = tokenizer(captions, padding="max_length", truncation=True).input_ids
        assert {len(ids) for ids in cut} == {24}


def test_a_tokenizer_is_the_same_in_every_run():
    captions = [f"{a}{b}{c} {c}{b}" for a in "abcdef" for b in "ghijk" for c in "lmnop"]  # ties
    learned = [train_tokenizer(captions, 640, 16).get_vocab() for _ in range(4)]
    assert learned[0] == learned[1] == learned[2] == learned[3]


def test_a_dropout_of_0_is_the_tokenizer_itself():
    tokenizer = train_tokenizer(["a red apple", "two apples", "the apple's core"] * 3, 600, 16)
    captions = ["red apple", "", "Two  APPLES' cores, \u00e9t\u00e9", "apple " * 40]
    tokens = BPEDropout(tokenizer, 0.0).tokenize(captions, random.Random(0))
    expected = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(tokens, expected.input_ids)


def test_dropout_gives_the_same_words_many_spellings():
    tokenizer = train_tokenizer(["a red apple", "two apples"] * 3, 600, 16)
    dropout = BPEDropout(tokenizer, 0.5)
    rows = {tuple(dropout.tokenize(["red apple"], random.Random(i))[0].tolist()) for i in range(50)}
    assert len(rows) > 10
    assert {tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows} == {
        "red apple"
    }
    one, other = (dropout.tokenize(["red apple"], random.Random(3)) for _ in range(2))
    assert torch.equal(one, other)
