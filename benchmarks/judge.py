"""Names what an image shows, without the model that drew it: the judge is the font.

    python benchmarks/judge.py

checks the judge itself, on glyphs that are drawn freshly.

The background is what most of the image's rim is nearest to; the foreground is what differs from
it. The box that holds nearly all of the foreground is cut out and brought to one size with its
proportions kept. The nearest of all glyphs of the font, drawn on the same background and cut out in
the same way, is the one that the image shows.
"""

import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from sdpipe.training.emoji import glyphs
from sdpipe.training.emoji.dataset import draw_scene
from sdpipe.training.emoji.scenes import COLOURS, PAIR, PLACES, RELATIONS, SIZES, Scene, caption
from sdpipe.training.recipe_file import load_recipe

Floats = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Part = tuple[int, int, int, int]  # the same, in whole pixels
Range = tuple[float, float]

SIDE = 32  # pixels a side of what is compared
MARGIN = 1.16  # side of the square that is cut out, as a multiple of the box's longer side
# Levels off the background from which a pixel is foreground. Noise stays below the first, a gray
# cloud on white rises above the second: the nearer glyph of the two ways to see it counts.
THRESHOLDS = (32, 12)
FULL = 48  # levels beyond that from which it is wholly so
TAIL = 0.004  # share of the foreground that lies beyond each side of its box: specks may
DRAWN_AT = 0.75  # scale at which the known glyphs are drawn
ANY_SCALE = (0.45, 1.0)
SLACK = 0.06  # how far off the scale may be that the caption asks for
FARTHER = 1.3  # a glyph at another scale counts as so many times as far: it only breaks ties

NOTHING = "nothing"  # the name of an empty image


@dataclass(frozen=True, eq=False)
class Cut:
    """The foreground of an image.

    box: where it is, from the middle of the image, as shares of the image's side.
    pixels: (SIDE, SIDE, 3), what is in it, on the background.
    threshold: the levels off the background from which a pixel was taken for foreground.
    """

    box: Box
    pixels: Floats
    threshold: int

    @property
    def length(self) -> float:
        """The box's longer side."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


@dataclass(frozen=True, eq=False)
class Known:
    """All N glyphs on one background.

    pixels: (N, SIDE * SIDE * 3). squares: (N,), their squared lengths, infinite
    where a glyph cannot be seen, red on red. boxes: (N, 4), as a `Cut`
    has them, at scale 1. lengths: (N,), their longer sides.
    """

    pixels: Floats
    squares: Floats
    boxes: Floats
    lengths: Floats


class Judge:
    """Names glyphs, sizes and places. `names` has one name of each glyph that looks different."""

    def __init__(self) -> None:
        self.inks = glyphs.render_all()
        self.same = glyphs.glyph_classes(self.inks)  # every name to that of its glyph in `names`
        self.names = sorted(set(self.same.values()))
        self._known: dict[tuple[str, int], Known] = {}

    def background(self, image: Image.Image) -> str:
        """The name of the colour on which the image's glyphs stand."""
        return ground(image)[0]

    def is_a(self, name: str, seen: str) -> bool:
        """Whether the glyph that was seen is the one of this name."""
        return self.same[name] == seen

    def name(
        self, image: Image.Image, inside: Part | None = None, scales: Range = ANY_SCALE
    ) -> str:
        """The glyph that the image shows, or that a part of it shows; `NOTHING` where none is.

        inside: that part, in pixels.
        scales: the least and the greatest at which the glyph was asked for. There are small squares
            in the font, and large ones, and nothing else tells them apart.
        """
        colour, levels = ground(image)
        distance, name = np.inf, NOTHING
        for threshold in THRESHOLDS:
            seen = cut(image, colour, levels, threshold, inside)
            if seen is not None:
                distance, name = min((distance, name), self._nearest(seen, colour, scales))
        return name

    def _nearest(self, seen: Cut, colour: str, scales: Range) -> tuple[float, str]:
        """The squared distance of the nearest glyph, by the image's measure, and its name."""
        known = self.known(colour, seen.threshold)
        shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        moved = np.stack([np.roll(seen.pixels, s, (0, 1)).ravel() for s in shifts])  # (9, P)
        nearest = (known.squares - 2 * moved @ known.pixels.T).min(axis=0)  # (N,)
        distance = (nearest + np.square(seen.pixels).sum()) * seen.length**2
        scale = seen.length / known.lengths
        fits = (scale > scales[0] - SLACK) & (scale < scales[1] + SLACK)
        distance = np.where(fits, distance, FARTHER * distance)
        best = int(distance.argmin())
        return float(distance[best]), self.names[best]

    def pair(self, image: Image.Image, relation: str) -> tuple[str, str]:
        """The two glyphs of an image that shows one, say, left of the other; each in its half."""
        x, y = RELATIONS[relation]
        width, height = image.size

        def half(x: int, y: int) -> Part:
            left, top = max(x, 0) * width // 2, max(y, 0) * height // 2
            return left, top, left + width // (1 + abs(x)), top + height // (1 + abs(y))

        first, second = half(x, y), half(-x, -y)
        scales = (PAIR, PAIR)
        return self.name(image, first, scales), self.name(image, second, scales)

    def size_and_place(self, image: Image.Image, name: str) -> tuple[str, str]:
        """The size and the place at which the named glyph would best fill the box that the
        image's foreground has.
        """
        colour, levels = ground(image)
        cuts = (cut(image, colour, levels, threshold) for threshold in THRESHOLDS)
        seen = next((c for c in cuts if c is not None), None)
        if seen is None:
            return NOTHING, NOTHING
        box = self.known(colour, seen.threshold).boxes[self.names.index(self.same[name])]

        def distance(size: str, place: str) -> float:
            room = (1 - SIZES[size]) / 2 - 0.01  # as in `draw_scene`
            x, y = (room * toward for toward in PLACES[place][1])
            return float(np.abs(box * SIZES[size] + (x, y, x, y) - seen.box).sum())

        return min(((s, p) for s in SIZES for p in PLACES), key=lambda both: distance(*both))

    def known(self, colour: str, threshold: int) -> Known:
        """All glyphs on a background, drawn when it is first asked for."""
        if (colour, threshold) not in self._known:
            self._known[colour, threshold] = self._draw(colour, threshold)
        return self._known[colour, threshold]

    def _draw(self, colour: str, threshold: int) -> Known:
        levels = np.array(COLOURS[colour], np.float32)
        count = len(self.names)
        known = Known(
            np.zeros((count, SIDE * SIDE * 3), np.float32),
            np.full(count, np.inf, np.float32),
            np.zeros((count, 4), np.float32),
            np.ones(count, np.float32),
        )
        for i, name in enumerate(self.names):
            image = glyphs.draw([(self.inks[name], DRAWN_AT, (0, 0))], 128, COLOURS[colour])
            found = cut(image, colour, levels, threshold)
            if found is not None:
                known.pixels[i] = found.pixels.ravel()
                known.squares[i] = np.square(found.pixels).sum()
                known.boxes[i] = np.array(found.box) / DRAWN_AT
                known.lengths[i] = found.length / DRAWN_AT
        return known


def ground(image: Image.Image) -> tuple[str, Floats]:
    """The colour that most of an image's rim is nearest to, and what the rim has of it: (3,)."""
    levels = np.asarray(image, np.float32)
    sides = (levels[:2], levels[-2:], levels[:, :2], levels[:, -2:])
    rim = np.concatenate([side.reshape(-1, 3) for side in sides])  # (pixels, 3)
    known = np.array(list(COLOURS.values()), np.float32)
    nearest = np.square(rim[:, None] - known).sum(axis=2).argmin(axis=1)
    most = int(np.bincount(nearest).argmax())
    return list(COLOURS)[most], np.median(rim[nearest == most], axis=0)


def cut(
    image: Image.Image, colour: str, levels: Floats, threshold: int, inside: Part | None = None
) -> Cut | None:
    """The foreground of a square image, or of a part of it; None where there is none.

    colour: the background's name; `levels`: what it is in this image.
    """
    seen = np.asarray(image, np.float32)  # (H, W, 3)
    if inside is not None:
        left, top, right, bottom = inside
        part = np.full_like(seen, levels)
        part[top:bottom, left:right] = seen[top:bottom, left:right]
        seen = part
    weight = np.clip(np.abs(seen - levels).max(axis=2) - threshold, 0, FULL)  # (H, W)
    if weight.sum() < 4 * FULL:
        return None
    (x0, x1), (y0, y1) = (extent(weight.sum(axis=axis)) for axis in (0, 1))

    size = image.width
    canvas = Image.new("RGB", (3 * size, 3 * size), COLOURS[colour])
    canvas.paste(Image.fromarray(seen.astype(np.uint8)), (size, size))
    reach = max(x1 - x0, y1 - y0) * MARGIN / 2
    x, y = size + (x0 + x1) / 2, size + (y0 + y1) / 2
    square = canvas.resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR, (x - reach, y - reach, x + reach, y + reach)
    )
    box = (x0 / size - 0.5, y0 / size - 0.5, x1 / size - 0.5, y1 / size - 0.5)
    return Cut(box, np.asarray(square, np.float32), threshold)


def extent(weight: Floats) -> Range:
    """Where the weight along a line begins and ends, but for a share `TAIL` at either end."""
    sums = np.concatenate([[0], np.cumsum(weight)])
    begin, end = np.interp((TAIL, 1 - TAIL), sums / sums[-1], np.arange(len(sums)))
    return float(begin), float(end)


class Tally:
    """Counts in what respects images are right, and lists those that are not in all of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seen: list[str] = []
        self.right: list[dict[str, bool]] = []

    def add(self, asked: str, seen: str, **right: bool) -> None:
        self.asked.append(asked)
        self.seen.append(seen)
        self.right.append(right)

    def only(self, chosen: Sequence[bool]) -> "Tally":
        """The count of the chosen images alone."""
        part = Tally()
        for asked, seen, right, mine in zip(self.asked, self.seen, self.right, chosen, strict=True):
            if mine:
                part.add(asked, seen, **right)
        return part

    def figures(self) -> dict[str, Any]:
        """The shares, each rounded to four digits; `all` where there are several."""
        count = len(self.asked)
        shares = {name: sum(r[name] for r in self.right) for name in self.right[0]}
        if len(shares) > 1:
            shares["all"] = sum(all(r.values()) for r in self.right)
        both = zip(self.asked, self.seen, self.right, strict=True)
        return {
            "images": count,
            **{name: round(right / count, 4) for name, right in shares.items()},
            "wrong": [f"{a}: {s}" for a, s, r in both if not all(r.values())],
        }


def compress(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1))


def check(judge: Judge, size: int = 128, limit: int | None = None) -> dict[str, Any]:
    """How often the judge is right about images of which it is known what they show.

    limit: so many glyphs, and not all.
    """
    rng = random.Random(0)
    names = judge.names if limit is None else rng.sample(judge.names, min(limit, len(judge.names)))
    recipe = load_recipe().scenes
    assert recipe is not None
    shown = {
        "anywhere": Tally(),
        "alone": Tally(),
        "placed": Tally(),
        "pairs": Tally(),
        "jpeg": Tally(),
        "blurred": Tally(),
    }

    def anywhere(name: str, tally: Tally, change: Callable[[Image.Image], Image.Image]) -> None:
        colour, scale = rng.choice(list(COLOURS)), rng.uniform(*ANY_SCALE)
        room = (1 - scale) / 2
        shift = rng.uniform(-room, room), rng.uniform(-room, room)
        image = change(glyphs.draw([(judge.inks[name], scale, shift)], size, COLOURS[colour]))
        seen, on = judge.name(image), judge.background(image)
        right = {"glyph": seen == name, "background": on == colour}
        tally.add(f"{name} on {colour}, {scale:.2f}", f"{seen} on {on}", **right)

    def drawn(scene: Scene) -> Image.Image:
        return draw_scene(scene, judge.inks, size, recipe, rng)

    for i, name in enumerate(names):
        anywhere(name, shown["anywhere"], lambda image: image)
        if i % 4 == 0:
            anywhere(name, shown["jpeg"], compress)
            anywhere(name, shown["blurred"], blur)

        seen = judge.name(drawn(Scene(name)), scales=recipe.scale)
        shown["alone"].add(name, seen, glyph=seen == name)

        scene = Scene(name, size=rng.choice(list(SIZES)), place=rng.choice(list(PLACES)))
        found = judge.size_and_place(drawn(scene), name)
        right = {"size": found[0] == scene.size, "place": found[1] == scene.place}
        shown["placed"].add(caption(scene), ", ".join(found), **right)

        relation, other = rng.choice(list(RELATIONS)), rng.choice(judge.names)
        scene = Scene(name, relation=relation, other=other)
        two = judge.pair(drawn(scene), relation)
        right = {"first": two[0] == name, "second": two[1] == other}
        shown["pairs"].add(caption(scene), ", ".join(two), **right)
    return {"glyphs": len(judge.names), **{key: t.figures() for key, t in shown.items()}}


if __name__ == "__main__":
    print(json.dumps(check(Judge()), indent=1))
