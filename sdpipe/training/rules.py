"""What the numbers of a recipe may be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpipe.errors import UsageError
from sdpipe.training.emoji.scenes import KINDS

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Rule:
    """What a number may be, and how that is told to a person."""

    allows: Callable[[Any], bool]
    told: str


def _are_shares(value: list[Any] | None) -> bool:
    if value is None:
        return True
    numbers = all(isinstance(share, int | float) and share >= 0 for share in value)
    return len(value) == len(KINDS) and numbers and any(value)


FROM_0 = Rule(lambda value: value >= 0, "is out of range; it is 0 or more")
FROM_1 = Rule(lambda value: value >= 1, "is out of range; it is 1 or more")
ABOVE_0 = Rule(lambda value: value > 0, "is out of range; it is more than 0")
BELOW_1 = Rule(lambda value: 0 <= value < 1, "is out of range; it is from 0 to below 1")
SHARE = Rule(lambda value: 0 <= value <= 1, "is out of range; it is from 0 to 1")
MUON = Rule(FROM_0.allows, "is out of range; it is 0 (all by AdamW) or more")
KIND = Rule(PREDICTION_TYPES.__contains__, f"is not known; it is {' or '.join(PREDICTION_TYPES)}")
SHARES = Rule(
    _are_shares,
    f"cannot be; it is {len(KINDS)} numbers, of 0 or more and not all 0, for {', '.join(KINDS)}",
)

RULES: Mapping[str, Rule] = {
    "batch": FROM_1,
    "timesteps": FROM_1,
    "length": FROM_1,
    "cycles": FROM_1,
    "learning_rate": ABOVE_0,
    "decoder_rate": ABOVE_0,
    "early": ABOVE_0,
    "rivals_early": ABOVE_0,
    "muon_rate": MUON,
    "ema": BELOW_1,
    "merge_dropout": BELOW_1,
    "dropped": SHARE,
    "reworded": SHARE,
    "alike": SHARE,
    "hard": SHARE,
    "rivals_hard": SHARE,
    "taken": SHARE,
    "contrast": FROM_0,
    "kept": FROM_0,
    "captions_weight": FROM_0,
    "rivals_weight": FROM_0,
    "shares": SHARES,
    "prediction_type": KIND,
    # What may be left out is 0; these stages may not.
    "steps": FROM_0,
    "decoder_steps": FROM_0,
    "warmup": FROM_0,
    "captions": FROM_0,
    "rivals": FROM_0,
    "unet.steps": FROM_1,
    "tune.steps": FROM_1,
}
"""By a number's name in one table, such as vae.steps, which comes first, or in any, as steps."""


def check_numbers(numbers: Mapping[str, Any]) -> None:
    """Refuses numbers, by names such as unet.steps, that nothing can be trained with.

    Raises:
        UsageError: one breaks its rule.
    """
    for name, value in numbers.items():
        rule = RULES.get(name) or RULES.get(name.rpartition(".")[2])
        if rule is not None and not rule.allows(value):
            raise UsageError(f"{name} = {value!r} {rule.told}.")
