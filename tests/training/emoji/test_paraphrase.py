"""Paraphrases keep the subject, and typos are small."""

import random

from sdpipe.training.emoji.paraphrase import add_typo, paraphrase, pluralize
from sdpipe.training.emoji.scenes import Scene


def test_plurals_are_regular():
    plurals = [pluralize(name) for name in ("cat", "box", "peach", "cherry", "key")]
    assert plurals == ["cats", "boxes", "peaches", "cherries", "keys"]


def test_a_typo_changes_one_word_by_one_letter():
    rng = random.Random(0)
    for _ in range(500):
        text = "small elephant on a purple background"
        words = add_typo(text, rng).split(" ")
        wrong = [(a, b) for a, b in zip(text.split(" "), words, strict=True) if a != b]
        assert len(wrong) <= 1
        assert all(abs(len(a) - len(b)) <= 1 and a[0] == b[0] for a, b in wrong)
    assert add_typo("a cat", rng) == "a cat"  # its words are too short


def test_paraphrases_keep_the_subject():
    rng = random.Random(0)
    texts = {paraphrase(Scene("owl"), rng) for _ in range(400)}
    assert {"owl", "an owl", "one owl", "picture of an owl", "owls", "OWL", "Owl"} <= texts
    centre = {paraphrase(Scene("owl", place="centre"), rng).lower() for _ in range(300)}
    assert {"owl in the centre", "owl in the middle"} <= centre
    pair = Scene("tiger", relation="above", other="lemon")
    wrong = [paraphrase(pair, rng).lower().split() for _ in range(300)]
    assert not any("tigers" in words or words[0] == "one" for words in wrong)
    assert sum("tiger" not in words or "lemon" not in words for words in wrong) > 100
