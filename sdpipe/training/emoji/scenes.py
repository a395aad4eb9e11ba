"""Scenes, which are the images of the built-in model's training, and their canonical captions.

A scene is one glyph or two on a plain background. Its caption names what it shows, in the order of
words that a person would type first.
"""

import zlib
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
# The side of the glyph as a fraction of the image's.
SIZES = {"small": 0.5, "medium": 0.65, "large": 0.8}
# The words of a caption, and the direction from the centre: to the right, down.
PLACES = {
    "left": ("on the left", (-1, 0)),
    "right": ("on the right", (1, 0)),
    "top": ("at the top", (0, -1)),
    "bottom": ("at the bottom", (0, 1)),
    "centre": ("in the centre", (0, 0)),
}
# Where the first of two glyphs is, seen from the centre.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
KINDS = ("plain", "coloured", "placed", "pair")  # of scenes, each with a share of the images
PAIR = 0.48  # the side of each of two glyphs

HELD_OUT = 8  # one combination in eight is never trained on


@dataclass(frozen=True)
class Scene:
    """What an image shows. None is what the caption leaves open."""

    name: str
    colour: str | None = None
    size: str | None = None
    place: str | None = None
    relation: str | None = None
    other: str | None = None

    @property
    def is_held_out(self) -> bool:
        """Whether the scene is kept out of training, to measure accuracy on unseen combinations.

        It is one in eight of each: name and colour; name, size and place; two names, in either
        order.
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
        """The names of its glyphs."""
        return [self.name] if self.other is None else [self.name, self.other]


def caption(scene: Scene) -> str:
    """The canonical caption of a scene."""
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


def with_article(name: str) -> str:
    """`a cat`, `an owl`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
