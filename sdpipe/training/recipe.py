"""`Recipe`: every number that a training run uses, read from one TOML file."""

import dataclasses
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpipe.errors import UsageError

EMOJI = Path(__file__).with_name("emoji.toml")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What is rendered, see `glyphs`."""

    size: int
    renderings: int
    on_white: float
    scale: tuple[float, float]
    shift: float
    blocks: list[list[int]]
    also: list[str]
    leave_out: list[str]


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
    steps: int
    batch: int
    learning_rate: float
    edges: float
    kl: float


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The decoder's further training, when the latents are settled."""

    steps: int
    batch: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Text:
    """The text encoder and its contrastive training."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
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
    pictures: Pictures
    tokenizer: Tokenizer
    vae: Vae
    text: Text
    unet: Unet
    decoder: Decoder
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
    if missing := sorted(known.keys() - values.keys()):
        raise UsageError(f"{table}{missing[0]} is missing.")
    return kind(**{name: _value(t, values[name], table + name) for name, t in known.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
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
