"""The rules that the numbers of a recipe follow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpipe.errors import UsageError
from sdpipe.training.emoji.scenes import KINDS
from sdpipe.training.recipe import Recipe
from sdpipe.values import nearest_multiples

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Rule:
    """Which values are allowed, and how an error says so."""

    allows: Callable[[Any], bool]
    text: str


def _are_shares(value: list[Any] | None) -> bool:
    if value is None:
        return True
    numbers = all(isinstance(share, int | float) and share >= 0 for share in value)
    return len(value) == len(KINDS) and numbers and any(value)


FROM_0 = Rule(lambda value: value >= 0, "is less than 0")
FROM_1 = Rule(lambda value: value >= 1, "is less than 1")
ABOVE_0 = Rule(lambda value: value > 0, "is not above 0")
BELOW_1 = Rule(lambda value: 0 <= value < 1, "is not from 0 to below 1")
FRACTION = Rule(lambda value: 0 <= value <= 1, "is not from 0 to 1")
PREDICTION = Rule(PREDICTION_TYPES.__contains__, f"is not {' or '.join(PREDICTION_TYPES)}")
SHARES = Rule(
    _are_shares,
    f"is not {len(KINDS)} numbers of 0 or more, not all 0, for {', '.join(KINDS)}",
)

RULES: Mapping[str, Rule] = {
    "batch_size": FROM_1,
    "num_train_timesteps": FROM_1,
    "cycles": FROM_1,
    "learning_rate": ABOVE_0,
    "decoder_learning_rate": ABOVE_0,
    "timestep_exponent": ABOVE_0,
    "negative_timestep_exponent": ABOVE_0,
    "muon_learning_rate": FROM_0,
    "ema_decay": BELOW_1,
    "bpe_dropout": BELOW_1,
    "caption_dropout": FRACTION,
    "paraphrase_fraction": FRACTION,
    "full_image_fraction": FRACTION,
    "look_alike_fraction": FRACTION,
    "colour_fraction": FRACTION,
    "hard_fraction": FRACTION,
    "alpha": FRACTION,
    "contrastive_weight": FROM_0,
    "canonical_weight": FROM_0,
    "distillation_weight": FROM_0,
    "shares": SHARES,
    "prediction_type": PREDICTION,
    # A stage of 0 steps is skipped; these two stages are always trained.
    "steps": FROM_0,
    "decoder_steps": FROM_0,
    "warmup_steps": FROM_0,
    "paraphrases": FROM_0,
    "negatives": FROM_0,
    "unet.steps": FROM_1,
    "finetuning.steps": FROM_1,
}
"""By the full name of a number, such as unet.steps, which comes first, or its last part."""


def check_numbers(numbers: Mapping[str, Any]) -> None:
    """Refuses numbers, by names such as unet.steps, that training cannot use.

    Raises:
        UsageError: a number breaks its rule.
    """
    for name, value in numbers.items():
        rule = RULES.get(name) or RULES.get(name.rpartition(".")[2])
        if rule is not None and value is not None and not rule.allows(value):
            raise UsageError(f"{name} = {value!r}", rule.text)


def check_recipe(recipe: Recipe, *, new: bool) -> None:
    """Refuses a recipe that would fail later. `size` counts only for a new model.

    Raises:
        UsageError: a number breaks its rule, or two do not fit each other.
    """
    check_numbers(recipe.numbers())
    distillation = recipe.refinement.paraphrases
    for name, stage in recipe.stages().items():
        paraphrases, negatives = getattr(stage, "paraphrases", 0), getattr(stage, "negatives", 0)
        key = f"refinement.{name}"
        if negatives and not paraphrases:
            raise UsageError(
                f"{key}.negatives = {negatives}", f"needs {key}.paraphrases of 1 or more"
            )
        if paraphrases and distillation is None:
            raise UsageError(
                f"{key}.paraphrases = {paraphrases}", "needs the table refinement.paraphrases"
            )
    if not new:
        return
    if recipe.size < recipe.size_multiple or recipe.size % recipe.size_multiple:
        raise UsageError(
            f"dim={recipe.size}",
            f"is not a multiple of {recipe.size_multiple}, which this recipe's networks need",
            f"the nearest are {nearest_multiples(recipe.size, recipe.size_multiple)}",
        )
    outputs = recipe.text_encoder.grid_size**2
    if recipe.tokenizer.max_length < outputs + 2:
        raise UsageError(
            f"tokenizer.max_length = {recipe.tokenizer.max_length}",
            f"is less than {outputs + 2}: the text encoder's grid takes {outputs} tokens, and two "
            "are marks",
        )
    factor = 2 ** (len(recipe.vae.block_out_channels) - 1)
    if recipe.vae.crop_size < factor or recipe.vae.crop_size % factor:
        raise UsageError(
            f"vae.crop_size = {recipe.vae.crop_size}", f"is not a multiple of {factor}"
        )
