"""`Recipe`: every number of a training run, as the tables of its TOML file.

A model is trained in four stages, each with a table: `vae`, `text_encoder`, `unet` and `joint`,
which trains the last two together. The built-in model passes through five more, `refinement`.
A number's type has the rule that `recipe_file` holds it to.
"""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from sdpipe.training.emoji.scenes import KINDS

FIT = {"steps", "learning_rate", "muon_learning_rate", "warmup_steps", "ema_decay"}
PREDICTION_TYPES = ("epsilon", "v_prediction")


class Rule(NamedTuple):
    """Which values are allowed, and how an error says so."""

    allows: Callable[[Any], bool]
    text: str


def _are_shares(value: list[Any]) -> bool:
    numbers = all(isinstance(share, int | float) and share >= 0 for share in value)
    return len(value) == len(KINDS) and numbers and any(value)


Natural = Annotated[int, Rule(lambda value: value >= 0, "is less than 0")]
Count = Annotated[int, Rule(lambda value: value >= 1, "is less than 1")]
Weight = Annotated[float, Rule(lambda value: value >= 0, "is less than 0")]
Positive = Annotated[float, Rule(lambda value: value > 0, "is not above 0")]
Decay = Annotated[float, Rule(lambda value: 0 <= value < 1, "is not from 0 to below 1")]
Fraction = Annotated[float, Rule(lambda value: 0 <= value <= 1, "is not from 0 to 1")]
Shares = Annotated[
    list[float],
    Rule(
        _are_shares, f"is not {len(KINDS)} numbers of 0 or more, not all 0, for {', '.join(KINDS)}"
    ),
]
Prediction = Annotated[
    str, Rule(PREDICTION_TYPES.__contains__, f"is not {' or '.join(PREDICTION_TYPES)}")
]


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """The images of the built-in model.

    images: how many there are.
    shares: the mixture of the kinds of scenes, see `emoji.scenes.KINDS`; they need not add up to 1.
    look_alike_fraction: of the scenes whose glyph comes from the half that resemble another most.
    colour_fraction: of placed glyphs and pairs that stand on a colour.
    scale, shift: range of a glyph's side, and its largest distance from the centre, as fractions of
        the image's side, where the caption names neither size nor place.
    """

    images: int
    shares: Shares
    look_alike_fraction: Fraction = 0.0
    colour_fraction: Fraction
    scale: tuple[float, float]
    shift: float


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Number of tokens, and length of a padded caption; both include the marks."""

    vocab_size: int
    max_length: int


@dataclass(frozen=True, kw_only=True)
class Vae:
    """The autoencoder, its training on crops and full images, and that of its decoder alone."""

    block_out_channels: list[int]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    crop_size: int
    full_image_fraction: Fraction
    steps: Natural
    batch_size: Count
    learning_rate: Positive
    ema_decay: Decay
    edge_weight: float
    mse_weight: float
    kl_weight: float
    decoder_steps: Natural
    decoder_learning_rate: Positive
    decoder_mse_weight: float


@dataclass(frozen=True, kw_only=True)
class Captions:
    """How captions vary during a stage.

    caption_dropout: fraction replaced by the empty caption.
    paraphrase_fraction: fraction of the others that is paraphrased.
    bpe_dropout: probability with which a merge of a paraphrase is skipped.
    """

    caption_dropout: Fraction = 0.1
    paraphrase_fraction: Fraction = 0.0
    bpe_dropout: Decay = 0.0


@dataclass(frozen=True, kw_only=True)
class Stage(Captions):
    """A stage that learns from captions; of 0 steps it is skipped.

    muon_learning_rate: 0 trains all weights with AdamW.
    """

    steps: Natural
    batch_size: Count
    learning_rate: Positive
    muon_learning_rate: Weight = 0.0

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `loop.fit` among these numbers."""
        return {name: value for name, value in vars(self).items() if name in FIT}


@dataclass(frozen=True, kw_only=True)
class TextEncoder(Stage):
    """The text encoder, and its training by regression of the latents."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    grid_size: int


@dataclass(frozen=True, kw_only=True)
class DenoisingStage(Stage):
    """A stage of DDPM's training; timesteps are T u^timestep_exponent of a uniform u."""

    timestep_exponent: Positive = 1.0
    train_text_encoder: bool = True
    warmup_steps: Natural
    ema_decay: Decay


@dataclass(frozen=True, kw_only=True)
class Unet(DenoisingStage):
    """The U-Net, the forward process, and the stage that trains the U-Net alone."""

    steps: Count
    block_out_channels: list[int]
    layers_per_block: int
    attention_head_dim: int
    norm_num_groups: int
    beta_start: float
    beta_end: float
    num_train_timesteps: Count
    prediction_type: Prediction
    max_loss_weight: float
    train_text_encoder: bool = False


@dataclass(frozen=True, kw_only=True)
class FineTuning(DenoisingStage):
    """The one stage of a model that was trained before (`--from`)."""

    steps: Count = 2000
    batch_size: Count = 8
    learning_rate: Positive = 1e-4
    warmup_steps: Natural = 100
    ema_decay: Decay = 0.998


@dataclass(frozen=True, kw_only=True)
class ConsistencyStage(Stage):
    """The one stage of a distillation, see `consistency`, and a file of its own.

    sampler_steps: those that the model is to draw in. rank: of the LoRA.
    paths: that the teacher follows; solver_steps: its own in each interval of the sampler's.
    """

    seed: int
    sampler_steps: Count
    paths: Count
    solver_steps: Count
    rank: Count
    warmup_steps: Natural
    ema_decay: Decay


@dataclass(frozen=True, kw_only=True)
class DistillationStage(Stage):
    """A stage that trains the text encoder on paraphrases, see `refinement.distillation`.

    shares: mixture of the kinds of scenes in place of that of `Scenes`.
    canonical_weight: of the error on canonical captions beside that on paraphrases.
    contrastive_weight: of the contrastive loss beside both.
    hard_fraction: of the subjects that is drawn by error.
    alpha: how far the weights move towards the result (WiSE-FT).
    """

    shares: Shares | None = None
    canonical_weight: Weight = 1.0
    contrastive_weight: Weight = 0.3
    hard_fraction: Fraction = 0.0
    alpha: Fraction = 1.0


@dataclass(frozen=True, kw_only=True)
class RefinementStage(DenoisingStage):
    """A stage of DDPM's training with further losses, repeated and averaged.

    paraphrases: captions a batch for the distillation loss, drawn as in the stage `paraphrases`;
        distillation_weight: the weight of that loss.
    negatives: images a batch for the contrastive loss; contrastive_weight: the weight of it;
        negative_timestep_exponent: for the timesteps of these images.
    hard_fraction: of these images that is drawn by error.
    cycles: repetitions, of `steps` each; the stage ends with the mean of their weights.
    alpha: how far the weights move towards that mean (WiSE-FT).
    """

    paraphrases: Natural = 0
    distillation_weight: Weight = 1.0
    negatives: Natural = 0
    contrastive_weight: Weight = 0.0
    negative_timestep_exponent: Positive = 1.0
    hard_fraction: Fraction = 0.0
    cycles: Count = 1
    alpha: Fraction = 1.0


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """The further stages of the built-in model, in their order; those left out are None."""

    paraphrases: DistillationStage | None = None
    joint_paraphrases: RefinementStage | None = None
    typos: DistillationStage | None = None
    unet_adaptation: RefinementStage | None = None
    hard_negatives: RefinementStage | None = None


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The sample sheets of a run: images on each, seconds between two, denoising steps."""

    images: Natural = 8
    seconds: Weight = 300.0
    steps: Count = 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run. `sampling` are the model's default settings, for its `sdpipe.json`."""

    seed: int
    size: int
    scenes: Scenes | None = None
    tokenizer: Tokenizer
    vae: Vae
    text_encoder: TextEncoder
    unet: Unet
    joint: DenoisingStage
    refinement: Refinement = Refinement()
    finetuning: FineTuning = FineTuning()
    consistency: ConsistencyStage | None = None
    samples: Samples = Samples()
    sampling: dict[str, Any]

    def stages(self) -> dict[str, Stage]:
        """The stages that follow the text encoder's own, by name and in their order."""
        further = {k: v for k, v in vars(self.refinement).items() if v is not None}
        return {"unet": self.unet, "joint": self.joint, **further}

    def steps_before(self, name: str) -> int:
        """The steps of all stages before this one: each stage has random numbers of its own."""
        before = itertools.takewhile(lambda stage: stage[0] != name, self.stages().items())
        return sum(stage.steps * getattr(stage, "cycles", 1) for _, stage in before)

    def numbers(self) -> dict[str, Any]:
        """The numbers that the weights depend on, by names such as `unet.steps`; JSON types."""
        values = dataclasses.asdict(self)
        return _flatten({k: v for k, v in values.items() if k not in ("samples", "sampling")})


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with names such as `unet.steps`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        flat |= _flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
