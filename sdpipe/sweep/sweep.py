"""`Sweep`: many pictures of one prompt, of which up to three settings take several values each.

    from sdpipe.sweep import Sweep

    sweep = Sweep("a {cat|dog} on the moon", g=[1, 3, 7.5], steps=20, seed=1)
    for cell in sweep.cells:
        print(cell.name, cell.settings)

A setting with several values is an axis, and so is every part {a|b} of the prompt or the negative
prompt: there each alternative takes its turn. The first axis goes across the grid, the second goes
down, and the third has a grid for each of its values. Knows nothing of torch, models or files; what
draws a sweep is `sdpipe.sweep.folder`.
"""

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Self

from sdpipe.errors import UsageError
from sdpipe.guidance import bounds, scale, shown
from sdpipe.init import PictureId, picture_id
from sdpipe.io.files import slug
from sdpipe.settings import Settings
from sdpipe.sweep.axes import as_text, plain
from sdpipe.sweep.parts import joined, split

SWEPT = (
    *(
        "g",
        "guidance_rescale",
        "guidance_interval",
        "steps",
        "seed",
        "variation_strength",
        "variation_seed",
    ),
    *("scheduler", "lms_order", "karras", "clip_skip", "strength", "hires_scale", "hires_strength"),
    *("dim", "width", "height"),
)
"""The settings that may have several values; the prompts have theirs as parts {a|b}."""

SINGLE = (
    "negative_prompt",
    "seamless",
    "batch_invariant",
    "safety",
    "init_image",
    "mask_image",
    "fit",
    "outpaint",
)

MAX_AXES = 3
MAX_CELLS = 1000

BATCH = 8  # cells that are drawn at once, at most
BATCH_PIXELS = BATCH * 512 * 512  # and their pixels: large cells are fewer


@dataclass(frozen=True)
class Axis:
    """What varies, and the values that it takes.

    name: of the setting. part: which part of a prompt it is, from 0.
    """

    name: str
    values: tuple[Any, ...]
    part: int = 0

    def label(self, i: int) -> str:
        """Value i as the grid calls it."""
        return label(self.name, self.values[i])

    def stem(self, i: int) -> str:
        """Value i as a file name has it: no piece of it looks like a number after a hyphen."""
        number = "" if self.part == 0 else str(self.part + 1)
        value = self.values[i]
        if "prompt" not in self.name:
            text = plain(value).replace("-", "minus")
            return f"{self.name}={re.sub('[:,]', 'to', text)}"
        name = self.name.removesuffix("_prompt") + number
        return f"{name}={slug(value).replace('-', '_') if value else 'nothing'}"


@dataclass(frozen=True)
class Cell:
    """One picture of a sweep.

    place: the number of its value on each axis, from 0.
    name: of its file, without the suffix.
    """

    place: tuple[int, ...]
    settings: Settings
    name: str


class Sweep:
    """The pictures of a prompt for every combination of the values of some settings.

    prompt: may have parts, as in "a {cat|dog} on {grass|sand}".
    values: settings by their names in `Settings`; a list or another sequence of several values
        makes an axis. `dim` sets width and height. `negative_prompt` may have parts, and those
        of `SINGLE` have one value for all; init_image and mask_image are what
        `canvas.take` returns. A pair is one value of g among others, (12, 4) or
        "12:4", and alone one of guidance_interval.

    axes: in the order of the grid: parts of the prompts first, then settings as they were given.
    cells: row by row, and one grid after the other.
    remarks: what was left out, a sentence each.

    Raises:
        UsageError: nothing varies, too much does, or a cell's settings break a rule.
    """

    def __init__(self, prompt: str, **values: Any) -> None:
        self.prompt = prompt
        self.remarks: list[str] = []
        self.values: dict[str, Any] = {}
        for name, value in values.items():
            if (kept := self._checked(name, value)) is not None:
                self.values[name] = kept
        self._texts = {"prompt": split("prompt", prompt)}
        if "negative_prompt" in self.values:
            self._texts["negative_prompt"] = split("negative", self.values["negative_prompt"])
        self.axes = tuple(self._find_axes())
        self._check_size()
        self.cells = tuple(self._make_cells())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The sweep that `to_dict` described. Raises UsageError where it is none."""
        others = dict(values)
        prompt = others.pop("prompt", None)
        for name in others:
            _check_name(name)
        return cls(prompt, **others)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; lists are axes."""
        shown = {k: list(v) if isinstance(v, tuple) else v for k, v in self.values.items()}
        for name, value in shown.items():
            if isinstance(value, PictureId):
                shown[name] = {"name": value.name, "sha256": value.sha256}
        return {"prompt": self.prompt, **shown}

    def with_values(self, **values: Any) -> "Sweep":
        """The same sweep with other or more values, or with another prompt."""
        return Sweep(**{"prompt": self.prompt, **self.values, **values})

    def command(self, **options: str | list[str]) -> str:
        """What draws this on the command line; `options` are more of them, such as model."""
        words: list[str] = []
        for name, given in {**self.texts(), **options}.items():
            option = (
                "--negative-prompt" if name == "negative_prompt" else f"--{name.replace('_', '-')}"
            )
            for text in [given] if isinstance(given, str) else given:
                words += [option] if name == "batch_invariant" else [option, text]
        own = [*words, "--", self.prompt] if self.prompt.startswith("-") else [self.prompt, *words]
        return shlex.join(["sdpipe", "sweep", *own])

    def texts(self) -> dict[str, str]:
        """The values of each setting, but the prompt, as a person types them."""
        return {
            name: as_text(_several(value)) if name in SWEPT else _single(value)
            for name, value in self.values.items()
            if value is not False or name != "batch_invariant"
        }

    def _checked(self, name: str, value: Any) -> Any:
        """A value, a tuple of several different ones, or None where there is nothing to keep."""
        _check_name(name)
        if name in ("init_image", "mask_image"):  # with its pixels, where it has them
            return value if isinstance(value, PictureId) else picture_id(name, value)
        if name == "outpaint" and isinstance(value, Sequence) and not isinstance(value, str):
            return list(value)
        if isinstance(value, str) or not isinstance(value, Sequence) or _is_interval(name, value):
            value = (value,)
        if len(value) > MAX_CELLS:
            raise _too_large([len(value)])
        value = tuple(_pair_as_text(name, each) for each in value)
        for each in value:
            if not isinstance(each, str | int | float | None) or (each is None and len(value) > 1):
                raise UsageError(f"{name}={each!r} is neither a number nor a text.")
        different = tuple(dict.fromkeys(value))
        if not different:
            raise UsageError(f"{name} is an empty list; give it a value, or leave it out.")
        if len(different) > 1 and name in SINGLE:
            remedy = (
                "give one"
                if name in ("batch_invariant", "safety")
                else "its parts {a|b} take several"
            )
            raise UsageError(f"{name} has {len(different)} values and takes one; {remedy}.")
        if len(different) < len(value):
            twice = next(each for each in different if value.count(each) > 1)
            self.remarks.append(
                f"{name} has {plain(twice)} more than once; every value is drawn once."
            )
        return different if len(different) > 1 else different[0]

    def _find_axes(self) -> Iterator[Axis]:
        for name, (_, parts) in self._texts.items():
            for i, alternatives in enumerate(parts):
                values = tuple(dict.fromkeys(alternatives))
                if len(values) < len(alternatives):
                    self.remarks.append(
                        f"{{{'|'.join(alternatives)}}} has an alternative more than once; each is "
                        "drawn once."
                    )
                yield Axis(name, values, i)
        for name, value in self.values.items():
            if isinstance(value, tuple):
                yield Axis(name, value)

    def _check_size(self) -> None:
        if not self.axes:
            raise UsageError(
                "nothing varies, and a sweep is over several values; give a setting some, as in "
                "--g 1,3,7.5 or --seed 1-4, or the prompt a part such as {cat|dog}."
            )
        if len(self.axes) > MAX_AXES:
            several = [
                f"{{{'|'.join(axis.values)}}}" if "prompt" in axis.name else axis.name
                for axis in self.axes[: MAX_AXES + 3]
            ]
            names = ", ".join(several) + ", ..." * (len(several) < len(self.axes))
            raise UsageError(
                f"{len(self.axes)} things vary ({names}); a sweep is over up to {MAX_AXES}: give "
                "the others one value each."
            )
        sizes = [len(axis.values) for axis in self.axes]
        if math.prod(sizes) > MAX_CELLS:
            raise _too_large(sizes)

    def _make_cells(self) -> Iterator[Cell]:
        fixed = {k: v for k, v in self.values.items() if not isinstance(v, tuple)}
        for numbers in product(*(range(len(axis.values)) for axis in reversed(self.axes))):
            place = numbers[::-1]
            chosen = list(zip(self.axes, place, strict=True))
            values = dict(fixed)
            for name, (between, _) in self._texts.items():
                values[name] = joined(between, [a.values[i] for a, i in chosen if a.name == name])
            values.update({a.name: a.values[i] for a, i in chosen if "prompt" not in a.name})
            for name, parse in (("g", scale), ("guidance_interval", bounds)):
                if isinstance(values.get(name), str):
                    values[name] = parse(values[name])
            yield Cell(place, Settings(**values), "-".join(a.stem(i) for a, i in chosen))


def label(name: str, value: Any) -> str:
    """A value of a setting in words that need no heading."""
    match name:
        case "steps":
            return f"{value} steps"
        case "dim":
            return f"{value} x {value}"
        case "width":
            return f"{value} wide"
        case "height":
            return f"{value} high"
        case "scheduler":
            return str(value)
        case "lms_order":
            return f"order {value}"
        case "clip_skip":
            return f"clip skip {value}"
        case "guidance_rescale" | "guidance_interval":
            return f"{name.removeprefix('guidance_')} {plain(value)}"
        case "variation_strength":
            return f"variation {plain(value)}"
        case "hires_scale":
            return f"hires {plain(value)}"
        case "variation_seed":
            return f"towards seed {value}"
        case "hires_strength":
            return f"hires strength {plain(value)}"
        case "karras":
            return "karras" if value else "no karras"
        case "prompt":
            return value or "(nothing)"
        case "negative_prompt":
            return f"not: {value}" if value else "(no negative)"
        case "batch_invariant":
            return "batch invariant"
        case "init_image":
            return f"from {value.name or 'a picture'}"
        case "mask_image":
            return f"where {value.name or 'a mask'} is white"
        case "safety" | "fit" | "outpaint" | "seamless":
            return f"{name} {_single(value)}"
        case _:
            return f"{name} {plain(value)}"


def batches(settings: Sequence[Settings], most: int = BATCH) -> list[list[int]]:
    """Which pictures can be drawn in one call of `Pipeline.generate`: their numbers, from 0.

    Those of a call differ in nothing but the seed, or of variations the variation seed, which goes
    up by one. There are never more than `most`, nor more pixels than `BATCH_PIXELS` unless it is
    one image. `settings` are resolved.
    """

    def seed_of(i: int) -> int:
        seed = settings[i].variation_seed if settings[i].is_variation else settings[i].seed
        return seed or 0

    alike: dict[Settings, list[int]] = {}
    for i, each in enumerate(settings):
        same = replace(each, variation_seed=0) if each.is_variation else replace(each, seed=0)
        alike.setdefault(same, []).append(i)
    found: list[list[int]] = []
    for same, numbers in alike.items():
        width, height = same.output_size
        room = min(most, BATCH_PIXELS // ((width or 512) * (height or 512)))
        batch: list[int] = []
        for i in sorted(numbers, key=seed_of):
            if batch and (len(batch) >= room or seed_of(i) != seed_of(batch[-1]) + 1):
                found.append(batch)
                batch = []
            batch.append(i)
        found.append(batch)
    return found


def _too_large(sizes: Sequence[int]) -> UsageError:
    factors = f"{' x '.join(map(str, sizes))} = " if len(sizes) > 1 else ""
    return UsageError(
        f"{factors}{math.prod(sizes)} pictures are more than a sweep has, {MAX_CELLS}; leave some "
        "values out, or draw it in parts."
    )


def _check_name(name: str) -> None:
    if name not in (*SWEPT, *SINGLE):
        known = ", ".join((*SWEPT, *SINGLE))
        raise UsageError(f"unknown setting {name!r}; a sweep has {known}.")


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _single(value: Any) -> str:
    """The value of one of `SINGLE`, as a person types it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value.name or "PICTURE" if isinstance(value, PictureId) else plain(value)


def _is_interval(name: str, value: Sequence[Any]) -> bool:
    """Whether a sequence is one value, where others are an axis."""
    return name == "guidance_interval" and all(isinstance(each, int | float) for each in value)


def _pair_as_text(name: str, value: Any) -> Any:
    """A pair as a person types it: tuples are axes, here and in JSON."""
    several = isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value)
    if name == "g" and several and len(value) == 2:
        return shown(tuple(value), "")
    return ",".join(map(plain, value)) if name == "guidance_interval" and several else value
