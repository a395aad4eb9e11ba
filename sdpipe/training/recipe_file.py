"""Reads a recipe's TOML file into `Recipe`: complete, of known keys, each number by its rule."""

import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Annotated, Any

from sdpipe.errors import UsageError
from sdpipe.training.recipe import ConsistencyStage, Recipe

EMOJI = Path(__file__).with_name("emoji.toml")
IMAGEFOLDER = Path(__file__).with_name("imagefolder.toml")
DISTILLATION = Path(__file__).with_name("distillation.toml")


def load_recipe(path: Path = EMOJI) -> Recipe:
    """Reads a recipe.

    Raises:
        UsageError: the file cannot be read, is not TOML, lacks a key, has an unknown one, or a
            value of another type, or one that breaks its rule.
    """
    recipe: Recipe = _load(path, Recipe)
    return recipe


def load_distillation(path: Path = DISTILLATION) -> ConsistencyStage:
    """Reads the recipe of a distillation. Raises UsageError as `load_recipe`."""
    stage: ConsistencyStage = _load(path, ConsistencyStage)
    return stage


def _load(path: Path, kind: type[Any]) -> Any:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the recipe {path}", f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"the recipe {path}", f"is not valid TOML: {error}") from error
    try:
        return _build(kind, values, "")
    except UsageError as error:
        value = f"{error.value} in the recipe {path}"
        raise UsageError(value, error.rule, error.remedy) from None


def _build(kind: type[Any], values: dict[str, Any], table: str) -> Any:
    """An instance of a dataclass from a table of TOML."""
    known = typing.get_type_hints(kind, include_extras=True)
    if unknown := sorted(values.keys() - known.keys()):
        raise UsageError(table + unknown[0], "is not a key", f"the keys are {', '.join(known)}")
    optional = {f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    if missing := sorted(known.keys() - values.keys() - optional):
        raise UsageError(table + missing[0], "is missing")
    return kind(**{name: _value(known[name], v, table + name) for name, v in values.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    """A value of TOML as a field's type has it."""
    if type(None) in typing.get_args(kind):  # X | None
        kind = typing.get_args(kind)[0]
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _build(typing.cast("type[Any]", kind), value, f"{name}.")
    annotated = typing.get_origin(kind) is Annotated
    kind, *rules = typing.get_args(kind) if annotated else (kind,)
    plain = typing.get_origin(kind) or kind
    if plain is float and type(value) is int:
        value = float(value)
    if plain is tuple and isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        raise UsageError(f"{name} = {value!r}", f"is not of type {plain.__name__}")
    for rule in rules:
        if not rule.allows(value):
            raise UsageError(f"{name} = {value!r}", rule.text)
    return value
