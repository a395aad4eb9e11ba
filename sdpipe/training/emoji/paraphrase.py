"""Paraphrases of captions: other openings, plurals, other words for the centre, and typos."""

import random
from collections.abc import Iterable

from sdpipe.training.emoji.scenes import COLOURS, PLACES, RELATIONS, SIZES, Scene, caption

OPENINGS = ("a", "one", "the", "picture of a", "a picture of a", "an emoji of a", "drawing of a")
CENTRES = ("in the centre", "in the center", "in the middle", "centred", "centered")


def paraphrase(scene: Scene, rng: random.Random) -> str:
    """A random paraphrase of a scene's caption: another opening, a plural or a typo, mostly in a
    name, and less often two of these. One in ten has capital letters.
    """
    text = caption(scene)
    name = rng.choice(scene.names)
    kind = 1.0 if scene.relation is not None else rng.random()
    if kind < 0.1:
        opening = rng.choice(OPENINGS)
        if opening.endswith("a") and text[0] in "aeiou":
            opening += "n"
        text = f"{opening} {text}"
    elif kind < 0.3:
        text = text.replace(name, pluralize(name), 1)
    if scene.place == "centre":
        text = text.replace(PLACES["centre"][0], rng.choice(CENTRES))
    if scene.colour == "gray" and rng.random() < 0.5:
        text = text.replace("gray", "grey")
    if rng.random() < (0.4 if kind < 0.3 else 0.95):
        wrong = add_typo(name, rng) if rng.random() < 0.75 else name
        text = add_typo(text, rng) if wrong == name else text.replace(name, wrong, 1)
    if rng.random() < 0.1:
        text = text.upper() if rng.random() < 0.5 else text.capitalize()
    return text


def list_words(names: Iterable[str]) -> list[str]:
    """All words of captions and paraphrases beside these names, without typos."""
    placed = [where for where, _ in PLACES.values()]
    coloured = [f"on a {colour} background" for colour in (*COLOURS, "grey")]
    plurals = [pluralize(name) for name in names]
    return [*OPENINGS, "an", *SIZES, *placed, *CENTRES, *RELATIONS, *coloured, *plurals]


def pluralize(name: str) -> str:
    """The name with its last word in the regular plural."""
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2:-1] not in tuple("aeiou"):
        return name[:-1] + "ies"
    return name + "s"


def add_typo(text: str, rng: random.Random) -> str:
    """Misspells one word of four or more letters: a letter is left out, doubled, swapped with the
    next, or replaced.
    """
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not long:
        return text
    i = rng.choice(long)
    word = words[i]
    k = rng.randrange(1, len(word) - 1)
    words[i] = rng.choice(
        (
            word[:k] + word[k + 1 :],
            word[:k] + word[k] + word[k:],
            word[:k] + word[k + 1] + word[k] + word[k + 2 :],
            word[:k] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[k + 1 :],
        )
    )
    return " ".join(words)
