"""What `--dim`, `--steps` and `--seed` change in a recipe, and what then has to fit together."""

import math
from dataclasses import replace
from typing import Any

from sdpipe.errors import UsageError
from sdpipe.training.recipe import Recipe, Refinement
from sdpipe.values import nearest_multiples


def adjust_recipe(
    recipe: Recipe,
    *,
    size: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    finetuning: bool = False,
) -> Recipe:
    """Changes size, seed or length of a recipe; None keeps its own.

    steps: those of the U-Net's stage, or of fine-tuning. The steps of all other stages, warm-ups
        and the reach of moving averages change in proportion.
    finetuning: a model is trained further; its size is checked when it is loaded.

    Raises:
        UsageError: numbers do not fit each other.
    """
    size = recipe.size if size is None else size
    first = recipe.finetuning if finetuning else recipe.unet
    ratio = 1.0 if steps is None else steps / first.steps
    names = ("vae", "text_encoder", "unet", "joint", "finetuning")
    stages = {name: _scale(getattr(recipe, name), ratio) for name in names}
    stages["vae"] = replace(stages["vae"], crop_size=min(recipe.vae.crop_size, size))
    further = {k: v and _scale(v, ratio) for k, v in vars(recipe.refinement).items()}
    seed = recipe.seed if seed is None else seed
    recipe = replace(recipe, seed=seed, size=size, refinement=Refinement(**further), **stages)
    _check_refinement(recipe)
    if not finetuning:
        _check_sizes(recipe)
    return recipe


def _scale(stage: Any, ratio: float) -> Any:
    """A stage with `ratio` times its steps. An average forgets as much over a shorter run."""
    changes: dict[str, Any] = {}
    for name, value in vars(stage).items():
        if name in ("steps", "decoder_steps"):
            changes[name] = max(round(value * ratio), 1) if value else 0
        elif name == "warmup_steps":
            changes[name] = round(value * min(ratio, 1))
        elif name == "ema_decay" and ratio < 1:
            changes[name] = max(1 - (1 - value) / ratio, 0.0)
    return replace(stage, **changes)


def _check_refinement(recipe: Recipe) -> None:
    """Refuses a stage that lacks what it learns from."""
    for name, stage in recipe.stages().items():
        paraphrases, negatives = getattr(stage, "paraphrases", 0), getattr(stage, "negatives", 0)
        key = f"refinement.{name}"
        if negatives and not paraphrases:
            raise UsageError(
                f"{key}.negatives = {negatives}", f"needs {key}.paraphrases of 1 or more"
            )
        if paraphrases and recipe.refinement.paraphrases is None:
            raise UsageError(
                f"{key}.paraphrases = {paraphrases}", "needs the table refinement.paraphrases"
            )


def _check_sizes(recipe: Recipe) -> None:
    """Refuses sizes that the networks of a new model cannot take."""
    factor = 2 ** (len(recipe.vae.block_out_channels) - 1)
    grid, halvings = recipe.text_encoder.grid_size, 2 ** (len(recipe.unet.block_out_channels) - 1)
    multiple = math.lcm(8, factor * grid, factor * halvings)
    if recipe.size < multiple or recipe.size % multiple:
        raise UsageError(
            f"dim={recipe.size}",
            f"is not a multiple of {multiple}, which this recipe's networks need",
            f"the nearest are {nearest_multiples(recipe.size, multiple)}",
        )
    if recipe.tokenizer.max_length < grid**2 + 2:
        raise UsageError(
            f"tokenizer.max_length = {recipe.tokenizer.max_length}",
            f"is less than {grid**2 + 2}: the text encoder's grid takes {grid**2} tokens, and two "
            "are marks",
        )
    if recipe.vae.crop_size < factor or recipe.vae.crop_size % factor:
        raise UsageError(
            f"vae.crop_size = {recipe.vae.crop_size}", f"is not a multiple of {factor}"
        )
