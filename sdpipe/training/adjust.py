"""What `--dim`, `--steps` and `--seed` change in a recipe."""

from dataclasses import replace
from typing import Any, TypeVar

from sdpipe.training.recipe import DenoisingStage, Recipe, Refinement, Stage
from sdpipe.training.rules import check_recipe

S = TypeVar("S", bound=Stage)


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
        UsageError: a number cannot be trained with.
    """
    size = recipe.size if size is None else size
    first = recipe.finetuning if finetuning else recipe.unet
    ratio = 1.0 if steps is None else steps / max(first.steps, 1)
    vae = replace(
        recipe.vae,
        crop_size=min(recipe.vae.crop_size, size),
        steps=_scale_steps(recipe.vae.steps, ratio),
        decoder_steps=_scale_steps(recipe.vae.decoder_steps, ratio),
        ema_decay=_scale_decay(recipe.vae.ema_decay, ratio),
    )
    further = {k: v and _scale(v, ratio) for k, v in vars(recipe.refinement).items()}
    recipe = replace(
        recipe,
        seed=recipe.seed if seed is None else seed,
        size=size,
        vae=vae,
        text_encoder=_scale(recipe.text_encoder, ratio),
        unet=_scale(recipe.unet, ratio),
        joint=_scale(recipe.joint, ratio),
        refinement=Refinement(**further),
        finetuning=_scale(recipe.finetuning, ratio),
    )
    check_recipe(recipe, new=not finetuning)
    return recipe


def _scale(stage: S, ratio: float) -> S:
    """A stage with `ratio` times its steps."""
    changes: dict[str, Any] = {"steps": _scale_steps(stage.steps, ratio)}
    if isinstance(stage, DenoisingStage):
        changes["warmup_steps"] = round(stage.warmup_steps * min(ratio, 1))
        changes["ema_decay"] = _scale_decay(stage.ema_decay, ratio)
    return replace(stage, **changes)


def _scale_steps(steps: int, ratio: float) -> int:
    return max(round(steps * ratio), 1) if steps else 0


def _scale_decay(decay: float, ratio: float) -> float:
    """The decay that forgets as much over a shorter run; a longer one keeps it."""
    return decay if ratio >= 1 else max(1 - (1 - decay) / ratio, 0.0)
