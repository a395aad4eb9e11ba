"""`Recipe`: every number that a training run uses, read from one TOML file."""

import dataclasses
import math
import tomllib
import types
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sdpipe.errors import UsageError
from sdpipe.training.rules import check_numbers
from sdpipe.values import nearest_multiples

EMOJI = Path(__file__).with_name("emoji.toml")
IMAGEFOLDER = Path(__file__).with_name("imagefolder.toml")


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What the built-in model's pictures show, see `scenes` and `glyphs`."""

    pictures: int
    shares: list[float]
    placed_on_colour: float
    scale: tuple[float, float]
    shift: float
    alike: float = 0.0


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
    decoder_steps: int
    decoder_rate: float
    decoder_square: float


@dataclass(frozen=True, kw_only=True)
class Words:
    """How captions are said while something learns from them."""

    dropped: float
    reworded: float = 0.0
    merge_dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Text(Words):
    """The text encoder and its first training, on its own."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    grid: int
    steps: int
    batch: int
    learning_rate: float
    muon_rate: float


@dataclass(frozen=True, kw_only=True)
class Unet(Words):
    """The U-Net, the forward process and the training algorithm."""

    block_out_channels: list[int]
    layers_per_block: int
    attention_head_dim: int
    norm_num_groups: int
    beta_start: float
    beta_end: float
    timesteps: int
    prediction_type: str
    weight: float
    train_text_encoder: bool
    early: float = 1.0
    captions: int = 0
    captions_weight: float = 1.0
    rivals: int = 0
    rivals_weight: float = 0.0
    rivals_early: float = 1.0
    rivals_hard: float = 0.0
    steps: int
    batch: int
    learning_rate: float
    muon_rate: float
    warmup: int
    ema: float


@dataclass(frozen=True, kw_only=True)
class Joint:
    """A stage where the U-Net learns, mostly together with the text encoder; without steps there is
    none.

    With `captions` the text encoder learns so many in other words beside every batch, as in
    `OtherWords`, with a loss of that weight; with `rivals` so many of a batch's pictures are to be
    told from theirs. It is taken in so many `cycles`, of `steps` each, and ends as the mean of
    them; `taken` is how much of the way there the weights are moved in the end.
    """

    reworded: float = 0.0
    merge_dropout: float = 0.0
    early: float = 1.0
    captions: int = 0
    captions_weight: float = 1.0
    rivals: int = 0
    rivals_weight: float = 0.0
    rivals_early: float = 1.0
    rivals_hard: float = 0.0
    train_text_encoder: bool = True
    cycles: int = 1
    taken: float = 1.0
    steps: int = 0
    batch: int = 32
    learning_rate: float = 1e-3
    muon_rate: float = 0.0
    warmup: int = 200
    ema: float = 0.999


@dataclass(frozen=True, kw_only=True)
class OtherWords(Words):
    """A stage where the text encoder alone learns captions in other words; without steps there is
    none.

    `shares` are those of its scenes, where they differ; `taken` is how much of the way that its
    weights go they are moved in the end.
    """

    dropped: float = 0.025
    reworded: float = 0.8
    shares: list[float] | None = None
    kept: float = 1.0
    contrast: float = 0.3
    hard: float = 0.0
    taken: float = 1.0
    steps: int = 0
    batch: int = 128
    learning_rate: float = 4e-4
    muon_rate: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Tune:
    """What differs where a model goes on learning: the U-Net and the text encoder, `--from`."""

    steps: int = 2000
    train_text_encoder: bool = True
    batch: int = 8
    learning_rate: float = 1e-4
    muon_rate: float = 0.0
    warmup: int = 100
    ema: float = 0.998


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The sheets of pictures that show how far the U-Net is; what is learned is the same without.

    `every` is in seconds.
    """

    pictures: int = 8
    every: float = 300.0
    steps: int = 20


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
    joint: Joint = Joint()
    other_words: OtherWords = OtherWords()
    both: Joint = Joint()
    spelling: OtherWords = OtherWords()
    reading: Joint = Joint()
    placing: Joint = Joint()
    tune: Tune = Tune()
    samples: Samples = Samples()
    sampling: dict[str, Any]

    @property
    def side(self) -> int:
        """What the sides of its pictures are multiples of: 8, as everywhere; the VAE's factor times
        the text encoder's grid; and what the U-Net halves again and again.
        """
        factor = 2 ** (len(self.vae.block_out_channels) - 1)
        halvings = 2 ** (len(self.unet.block_out_channels) - 1)
        return math.lcm(8, factor * self.text.grid, factor * halvings)

    def numbers(self) -> dict[str, Any]:
        """What the weights depend on, by names such as `unet.steps`; plain JSON types."""
        values = dataclasses.asdict(self)
        told = {k: v for k, v in values.items() if k not in ("samples", "sampling")}
        flat: dict[str, Any] = {}
        for name, value in told.items():
            table = value if isinstance(value, dict) else None
            flat |= {f"{name}.{k}": v for k, v in table.items()} if table else {name: value}
        return flat


Stage = TypeVar("Stage", Unet, Joint)


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


def adjusted(
    recipe: Recipe,
    *,
    dim: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    going_on: bool = False,
) -> Recipe:
    """The recipe with another size, seed or length. None leaves what it says.

    `steps` are the U-Net's; those of the other stages, the warm-ups and the reach of the moving
    averages change in proportion. `going_on` says that no part is made anew (`--from`): then the
    U-Net's training is that of `tune`, and the size is for the model to judge.

    Raises:
        UsageError: a number cannot be trained with.
    """
    seed = recipe.seed if seed is None else seed
    size = recipe.size if dim is None else dim
    unet = replace(recipe.unet, **dataclasses.asdict(recipe.tune)) if going_on else recipe.unet
    share = 1.0 if steps is None else steps / max(unet.steps, 1)
    unet = _scaled(unet, unet.steps if steps is None else steps, share)
    vae = replace(
        recipe.vae,
        crop=min(recipe.vae.crop, size),
        steps=_times(recipe.vae.steps, share),
        decoder_steps=_times(recipe.vae.decoder_steps, share),
        ema=_ema(recipe.vae.ema, share),
    )
    stages: dict[str, Any] = {}
    for name, stage in vars(recipe).items():
        if isinstance(stage, Text | OtherWords):
            stages[name] = replace(stage, steps=_times(stage.steps, share))
        elif isinstance(stage, Joint):
            stages[name] = _scaled(stage, _times(stage.steps, share), share)
    recipe = replace(recipe, seed=seed, size=size, unet=unet, vae=vae, **stages)
    _check(recipe, anew=not going_on)
    return recipe


def _scaled(stage: Stage, steps: int, share: float) -> Stage:
    """A stage of so many steps, which are that share of its own."""
    warmup = round(stage.warmup * min(share, 1))
    return replace(stage, steps=steps, warmup=warmup, ema=_ema(stage.ema, share))


def _times(steps: int, share: float) -> int:
    return max(round(steps * share), 1) if steps else 0


def _ema(decay: float, share: float) -> float:
    """The decay a step that forgets as much over a run of another length; longer ones keep it."""
    return decay if share >= 1 else max(1 - (1 - decay) / share, 0.0)


def _check(recipe: Recipe, *, anew: bool) -> None:
    """Refuses what would fail later. Where no part is made anew, `size` is not looked at."""
    check_numbers(recipe.numbers())
    for name, stage in vars(recipe).items():
        if isinstance(stage, Joint) and stage.rivals and not stage.captions:
            raise UsageError(
                f"{name}.rivals = {stage.rivals} is learned beside captions in other words, and "
                f"{name}.captions is 0; take 1 or more."
            )
    if anew and (recipe.size < recipe.side or recipe.size % recipe.side):
        raise UsageError(
            f"dim={recipe.size} is not a multiple of {recipe.side}, which the networks of this "
            f"recipe ask for; take {nearest_multiples(recipe.size, recipe.side)}."
        )
    if anew and recipe.tokenizer.length < recipe.text.grid**2 + 2:
        raise UsageError(
            f"tokenizer.length = {recipe.tokenizer.length} is too short; the text encoder's grid "
            f"takes {recipe.text.grid**2} tokens, and two are marks."
        )
    factor = 2 ** (len(recipe.vae.block_out_channels) - 1)
    if anew and (recipe.vae.crop < factor or recipe.vae.crop % factor):
        raise UsageError(f"vae.crop = {recipe.vae.crop} is not a multiple of {factor}.")


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
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        raise UsageError(f"{name} = {value!r} is not of the type {plain.__name__}.")
    return value
