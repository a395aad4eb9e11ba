"""`Recipe`: every number that a training run uses, read from one TOML file."""

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpipe.errors import UsageError

EMOJI = Path(__file__).with_name("emoji.toml")


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What the built-in model's pictures show, see `scenes` and `glyphs`."""

    pictures: int
    shares: list[float]
    placed_on_colour: float
    scale: tuple[float, float]
    shift: float


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """How captions are cut."""

    vocabulary: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Vae:
    """The autoencoder and its training."""

    block_out_channels: list[int]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    crop: int
    whole: float
    steps: int
    batch: int
    learning_rate: float
    ema: float
    edges: float
    square: float
    kl: float


@dataclass(frozen=True, kw_only=True)
class Text:
    """The text encoder and its training on its own."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    grid: int
    steps: int
    batch: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Unet:
    """The U-Net, the forward process and the training algorithm."""

    block_out_channels: list[int]
    layers_per_block: int
    attention_head_dim: int
    norm_num_groups: int
    beta_start: float
    beta_end: float
    timesteps: int
    dropped: float
    weight: float
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    ema: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training run. `sampling` is what the model says of itself in its `sdpipe.json`."""

    seed: int
    size: int
    scenes: Scenes | None = None
    tokenizer: Tokenizer
    vae: Vae
    text: Text
    unet: Unet
    sampling: dict[str, Any]


def load_recipe(path: Path = EMOJI) -> Recipe:
    """The recipe in a TOML file, complete and with no key that training does not know.

    Raises:
        UsageError: no such file, no TOML, a key missing, a key unknown, a value of another type.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"the recipe {path} is no TOML: {error}.") from error
    try:
        return _build(Recipe, values, "")
    except UsageError as error:
        raise UsageError(f"the recipe {path}: {error}") from None


def _build(kind: type[Any], values: dict[str, Any], table: str) -> Any:
    known = typing.get_type_hints(kind)
    if unknown := sorted(values.keys() - known.keys()):
        raise UsageError(f"{table}{unknown[0]} is not known; known are {', '.join(known)}.")
    optional = {f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    if missing := sorted(known.keys() - values.keys() - optional):
        raise UsageError(f"{table}{missing[0]} is missing.")
    return kind(**{name: _value(known[name], v, table + name) for name, v in values.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    if isinstance(kind, types.UnionType):  # X | None: what is given is an X
        kind = typing.get_args(kind)[0]
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _build(typing.cast("type[Any]", kind), value, f"{name}.")
    plain = typing.get_origin(kind) or kind
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if plain is tuple and isinstance(value, list):
        return tuple(value)
    if not isinstance(value, plain) or isinstance(value, bool):
        raise UsageError(f"{name} = {value!r} is not of the type {plain.__name__}.")
    return value
