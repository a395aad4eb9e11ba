"""What a picture of the built-in model's training shows, and the many ways to say it.

A scene is one glyph or two on a plain background. Its caption names what is to be seen, in that
order of words which a person would type first; `reword` says the same in other words, and mistypes.
"""

import random
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

COLOURS = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (220, 50, 47),
    "green": (60, 160, 70),
    "blue": (50, 100, 220),
    "yellow": (250, 220, 80),
    "purple": (140, 80, 190),
    "pink": (250, 160, 200),
    "orange": (250, 150, 50),
    "gray": (140, 140, 140),
}
# The side of the glyph as a share of the picture's.
SIZES = {"small": 0.5, "medium": 0.65, "large": 0.8}
# How a caption says it, and the direction from the middle: to the right, down.
PLACES = {
    "left": ("on the left", (-1, 0)),
    "right": ("on the right", (1, 0)),
    "top": ("at the top", (0, -1)),
    "bottom": ("at the bottom", (0, 1)),
    "centre": ("in the centre", (0, 0)),
}
# Where the first of two glyphs stands, seen from the middle.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
KINDS = ("plain", "coloured", "placed", "pair")  # of scenes, each with a share of the pictures
PAIR = 0.48  # the side of each of two glyphs

HELD_OUT = 8  # one combination in so many is never trained on


@dataclass(frozen=True)
class Scene:
    """One picture: what stands where. None where the caption does not say."""

    name: str
    colour: str | None = None
    size: str | None = None
    place: str | None = None
    relation: str | None = None
    other: str | None = None

    @property
    def held_out(self) -> bool:
        """Whether training leaves this out: the accuracy is measured on what it never saw.

        One in eight of each: name and colour; name, size and place; two names, in either order.
        """
        combinations: list[tuple[str, ...]] = []
        if self.colour is not None:
            combinations += [(name, self.colour) for name in self.names]
        if self.size is not None and self.place is not None:
            combinations.append((self.name, self.size, self.place))
        if self.other is not None:
            combinations.append(tuple(sorted(self.names)))
        return any(zlib.crc32("|".join(c).encode()) % HELD_OUT == 0 for c in combinations)

    @property
    def names(self) -> list[str]:
        """The glyphs that it shows."""
        return [self.name] if self.other is None else [self.name, self.other]


def caption(scene: Scene) -> str:
    """What the picture is called, in few words."""
    words = [scene.name]
    if scene.size is not None:
        words.insert(0, scene.size)
    if scene.place is not None:
        words.append(PLACES[scene.place][0])
    if scene.relation is not None and scene.other is not None:
        words = [with_article(scene.name), scene.relation, with_article(scene.other)]
    if scene.colour is not None:
        words.append(f"on a {scene.colour} background")
    return " ".join(words)


OPENINGS = ("a", "one", "the", "picture of a", "a picture of a", "an emoji of a", "drawing of a")
CENTRES = ("in the centre", "in the center", "in the middle", "centred", "centered")


def reword(scene: Scene, rng: random.Random) -> str:
    """The caption in other words: opened otherwise, as a plural, or with a letter mistyped, mostly
    of a name; two of these less often. Now and then in capital letters.
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
        text = text.replace(name, plural(name), 1)
    if scene.place == "centre":
        text = text.replace(PLACES["centre"][0], rng.choice(CENTRES))
    if scene.colour == "gray" and rng.random() < 0.5:
        text = text.replace("gray", "grey")
    if rng.random() < (0.4 if kind < 0.3 else 0.95):
        wrong = mistype(name, rng) if rng.random() < 0.75 else name
        text = mistype(text, rng) if wrong == name else text.replace(name, wrong, 1)
    if rng.random() < 0.1:
        text = text.upper() if rng.random() < 0.5 else text.capitalize()
    return text


def other_words(names: Iterable[str]) -> list[str]:
    """All that captions of these names ever say beside them, but what is mistyped."""
    placed = [where for where, _ in PLACES.values()]
    coloured = [f"on a {colour} background" for colour in (*COLOURS, "grey")]
    plurals = [plural(name) for name in names]
    return [*OPENINGS, "an", *SIZES, *placed, *CENTRES, *RELATIONS, *coloured, *plurals]


def with_article(name: str) -> str:
    """`a cat`, `an owl`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    """The name with its last word in the plural, by the rule."""
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2:-1] not in tuple("aeiou"):
        return name[:-1] + "ies"
    return name + "s"


def mistype(text: str, rng: random.Random) -> str:
    """One letter of a word of four or more goes wrong: missing, doubled, swapped or another."""
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
