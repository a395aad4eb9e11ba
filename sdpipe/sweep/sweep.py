"""`Sweep`: many images of one prompt, for every combination of the values of some settings.

    from sdpipe.sweep import Sweep

    sweep = Sweep("a {cat|dog} on the moon", g=[1, 3, 7.5], steps=20, seed=1)
    for cell in sweep.cells:
        print(cell.name, cell.settings)

A setting with several values is an axis, and so is every part {a|b} of the prompt or the negative
prompt. The first axis goes across the grid, the second goes down, and the third has a grid for each
of its values. Needs no torch, no model and no files; `sdpipe.sweep.folder` draws a sweep.
"""

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Self

from sdpipe.errors import UsageError
from sdpipe.io.names import slug
from sdpipe.settings import (
    RULES,
    ImageRef,
    Settings,
    check_image_ref,
    check_name,
    label,
)
from sdpipe.sweep.axes import format_values, join_prompt, split_prompt
from sdpipe.values import format_value

SWEPT = tuple(name for name, rule in RULES.items() if rule.sweepable)
"""The settings that may have several values; prompts have theirs as parts {a|b}."""

SINGLE = tuple(name for name in RULES if name not in (*SWEPT, "prompt", "n", "save_int"))
"""The settings that have one value for all cells."""

MAX_AXES = 3
MAX_CELLS = 1000


@dataclass(frozen=True)
class Axis:
    """A setting that varies, and its values.

    name: of the setting. part: which part of a prompt it is, from 0.
    """

    name: str
    values: tuple[Any, ...]
    part: int = 0

    def label(self, i: int) -> str:
        """Value i, as the grid has it."""
        value = self.values[i]
        return (value or "(nothing)") if self.name == "prompt" else label(self.name, value)

    def slug(self, i: int) -> str:
        """Value i, as a file's name has it: nothing in it looks like a number after a hyphen.

        Prompts that are alike in a name get the number of the value.
        """
        number = "" if self.part == 0 else str(self.part + 1)
        value = self.values[i]
        if "prompt" not in self.name:
            text = format_value(value).replace("-", "minus")
            return f"{self.name}={re.sub('[:,]', 'to', text)}"
        name = self.name.removesuffix("_prompt") + number
        alike = f"_{i + 1}" if self._slugs.count(self._slugs[i]) > 1 else ""
        return f"{name}={self._slugs[i]}{alike}"

    @cached_property
    def _slugs(self) -> list[str]:
        return [slug(text).replace("-", "_") if text else "nothing" for text in self.values]


@dataclass(frozen=True)
class Cell:
    """One image of a sweep.

    index: the number of its value on each axis, from 0.
    name: of its file, without the suffix.
    """

    index: tuple[int, ...]
    settings: Settings
    name: str


class Sweep:
    """The images of a prompt for every combination of the values of some settings.

    prompt: may have parts, as in "a {cat|dog} on {grass|sand}".
    values: settings by their names in `Settings`; a list or another sequence of several values
        makes an axis. `negative_prompt` may have parts; `SINGLE` have one value for all cells.
        init_image and mask_image are what `canvas.load_images` returns. A pair is one value of g
        among others, (12, 4) or "12:4", and alone one of guidance_interval.

    axes: in the order of the grid: parts of the prompts first, then settings as they were given.
    notes: what was left out, a sentence each.

    Raises:
        UsageError: nothing varies, too much does, or a cell's settings break a rule.
    """

    def __init__(self, prompt: str, **values: Any) -> None:
        self._read(prompt, values)
        len(self.cells)  # which checks each

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The images, row by row, and one grid after the other."""
        return tuple(self._make_cells())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The sweep that `to_dict` described; its cells are made when they are asked for.

        Raises:
            UsageError: as the class; of several settings together only the first cell is checked.
        """
        settings = dict(values)
        prompt = settings.pop("prompt", None)
        for name in settings:
            _check_name(name)
        sweep = cls.__new__(cls)
        sweep._read(prompt, settings)
        next(sweep._make_cells())
        for axis in sweep.axes:
            if axis.name not in sweep._prompts:
                for value in axis.values:
                    RULES[axis.name].check(axis.name, _parse(axis.name, value))
        return sweep

    def _read(self, prompt: str, values: Mapping[str, Any]) -> None:
        """Everything but the cells."""
        self.prompt = prompt
        self.notes: list[str] = []
        self.values: dict[str, Any] = {}
        for name, value in values.items():
            if (kept := self._check(name, value)) is not None:
                self.values[name] = kept
        self._prompts = {"prompt": split_prompt("prompt", prompt)}
        if (negative := self.values.get("negative_prompt")) is not None:
            self._prompts["negative_prompt"] = split_prompt("negative_prompt", negative)
        self.axes = tuple(self._find_axes())
        self._check_size()

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; lists are axes."""
        found = {k: list(v) if isinstance(v, tuple) else v for k, v in self.values.items()}
        for name, value in found.items():
            if isinstance(value, ImageRef):
                found[name] = {"name": value.name, "sha256": value.sha256}
        return {"prompt": self.prompt, **found}

    def with_values(self, **values: Any) -> "Sweep":
        """The same sweep with other or more values, or with another prompt."""
        return Sweep(**{"prompt": self.prompt, **self.values, **values})

    def command(self, **options: str | list[str]) -> str:
        """The command line that draws this; `options` are further ones, such as model."""
        words: list[str] = []
        for name, given in {**self.texts(), **options}.items():
            option = f"--{name.replace('_', '-')}"
            is_flag = name in RULES and not RULES[name].metavar and name in SINGLE
            for text in [given] if isinstance(given, str) else given:
                words += [option] if is_flag else [option, text]
        own = [*words, "--", self.prompt] if self.prompt.startswith("-") else [self.prompt, *words]
        return shlex.join(["sdpipe", "sweep", *own])

    def texts(self) -> dict[str, str]:
        """The values of each setting but the prompt, as a person types them."""
        return {
            name: format_values(value if isinstance(value, tuple) else (value,))
            if name in SWEPT
            else RULES[name].format(value) or "IMAGE"
            for name, value in self.values.items()
            if value is not False or name in SWEPT
        }

    def _check(self, name: str, value: Any) -> Any:
        """A value, a tuple of several different ones, or None where there is nothing to keep."""
        _check_name(name)
        if value is not None and RULES[name].check is check_image_ref:
            return value if isinstance(value, ImageRef) else check_image_ref(name, value)
        if isinstance(value, str) or not isinstance(value, Sequence) or _is_one(name, value):
            value = (value,)
        if len(value) > MAX_CELLS:
            raise _too_large([len(value)])
        values = tuple(_pair_as_text(name, one) for one in value)
        for one in values:
            if not isinstance(one, str | int | float | None) or (one is None and len(values) > 1):
                raise UsageError(f"{name}={one!r}", "is neither a number nor text")
        different = tuple(dict.fromkeys(values))
        if not different:
            raise UsageError(f"{name}=[]", "has no value", "give it one, or leave it out")
        if len(different) > 1 and name in SINGLE:
            remedy = "its parts {a|b} take several" if "prompt" in name else "give one"
            raise UsageError(name, f"has {len(different)} values, where one is possible", remedy)
        if len(different) < len(values):
            twice = next(value for value in different if values.count(value) > 1)
            self.notes.append(f"{name} has {format_value(twice)} more than once; it is drawn once.")
        return different if len(different) > 1 else different[0]

    def _find_axes(self) -> Iterator[Axis]:
        for name, (_, parts) in self._prompts.items():
            for i, alternatives in enumerate(parts):
                values = tuple(dict.fromkeys(alternatives))
                if len(values) < len(alternatives):
                    self.notes.append(
                        f"{{{'|'.join(alternatives)}}} has an alternative more than once; it is "
                        "drawn once."
                    )
                yield Axis(name, values, i)
        for name, value in self.values.items():
            if isinstance(value, tuple):
                yield Axis(name, value)

    def _check_size(self) -> None:
        if not self.axes:
            raise UsageError(
                "the sweep",
                "has only one image: nothing varies",
                "give a setting several values, as in --g 1,3,7.5 or --seed 1-4, or the prompt a "
                "part such as {cat|dog}",
            )
        if len(self.axes) > MAX_AXES:
            several = [
                f"{{{'|'.join(axis.values)}}}" if "prompt" in axis.name else axis.name
                for axis in self.axes[: MAX_AXES + 3]
            ]
            names = ", ".join(several) + ", ..." * (len(several) < len(self.axes))
            raise UsageError(
                f"{len(self.axes)} axes ({names})",
                f"are more than the {MAX_AXES} of a sweep",
                "give the others one value each",
            )
        sizes = [len(axis.values) for axis in self.axes]
        if math.prod(sizes) > MAX_CELLS:
            raise _too_large(sizes)

    def _make_cells(self) -> Iterator[Cell]:
        fixed = {k: v for k, v in self.values.items() if not isinstance(v, tuple)}
        for numbers in product(*(range(len(axis.values)) for axis in reversed(self.axes))):
            index = numbers[::-1]
            chosen = list(zip(self.axes, index, strict=True))
            values = dict(fixed)
            for name, (between, _) in self._prompts.items():
                alternatives = [axis.values[i] for axis, i in chosen if axis.name == name]
                values[name] = join_prompt(between, alternatives)
            values |= {a.name: a.values[i] for a, i in chosen if a.name not in self._prompts}
            settings = Settings(**{name: _parse(name, value) for name, value in values.items()})
            yield Cell(index, settings, "-".join(axis.slug(i) for axis, i in chosen))


def _parse(name: str, value: Any) -> Any:
    return RULES[name].parse(value) if isinstance(value, str) else value


def _too_large(sizes: Sequence[int]) -> UsageError:
    factors = f"{' x '.join(map(str, sizes))} = " if len(sizes) > 1 else ""
    return UsageError(
        f"{factors}{math.prod(sizes)} images",
        f"are more than the {MAX_CELLS} of a sweep",
        "leave some values out, or draw it in parts",
    )


def _check_name(name: str) -> None:
    check_name(name)
    if name not in (*SWEPT, *SINGLE):
        raise UsageError(
            f"setting {name!r}", "is not one of a sweep", f"use {', '.join((*SWEPT, *SINGLE))}"
        )


def _pair_as_text(name: str, value: Any) -> Any:
    """Several numbers as a person types them, for tuples are axes, here and in JSON."""
    several = isinstance(value, list | tuple) and (len(value) > 1 or RULES[name].separator != ",")
    return RULES[name].format(value) if several else value


def _is_one(name: str, value: Sequence[Any]) -> bool:
    """Whether a sequence is one value of a setting, where for others it is an axis."""
    is_list = RULES[name].separator != ","
    return is_list and all(isinstance(number, int | float) for number in value)
