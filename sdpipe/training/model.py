"""The model that is trained: made from nothing, or taken from another; the folder it becomes."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from sdpipe.components import Components, load
from sdpipe.errors import ModelError, UsageError
from sdpipe.latents import vae_factor
from sdpipe.loading.vocabulary import FILE
from sdpipe.prompt.vocabulary import Vocabulary
from sdpipe.training import ddpm, vae
from sdpipe.training import text_encoder as text
from sdpipe.training.recipe import Recipe
from sdpipe.training.rules import PREDICTION_TYPES
from sdpipe.training.run_folder import cannot_write
from sdpipe.training.tokenizer import train_tokenizer

SCHEDULER = "LMSDiscreteScheduler"


@dataclass(frozen=True, eq=False)
class Model:
    """The five parts, the scheduler as its configuration.

    sampling: what the model says of itself in its `sdpipe.json`.
    vocabulary: the words that it was trained on, for its `words.json`; None if it may know any.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: dict[str, Any]
    sampling: dict[str, Any]
    vocabulary: Vocabulary | None = None


def new_model(
    recipe: Recipe, captions: Sequence[str], vocabulary: Vocabulary | None = None
) -> Model:
    """An untrained model, but for its tokenizer, which has learned from the captions.

    Raises:
        UsageError: the recipe asks for a network that cannot be built.
    """
    r = recipe
    torch.manual_seed(r.seed)
    tokenizer = train_tokenizer(captions, r.tokenizer.vocabulary, r.tokenizer.length)
    try:
        autoencoder = vae.build_vae(r.vae, r.size)
        text_encoder = text.build_text_encoder(r.text, tokenizer)
        size = r.size // vae_factor(autoencoder)
        unet = ddpm.build_unet(r.unet, size, r.vae.latent_channels, r.text.hidden_size)
    except (ValueError, ZeroDivisionError, StrictDataclassError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"the recipe asks for networks that cannot be: {reason}.") from error
    # Only what was trained with: where steps are placed is for each scheduler's class to say.
    scheduler = {
        "_class_name": SCHEDULER,
        "_diffusers_version": diffusers.__version__,
        "beta_start": r.unet.beta_start,
        "beta_end": r.unet.beta_end,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": r.unet.timesteps,
        "prediction_type": r.unet.prediction_type,
        "steps_offset": 1,
    }
    sampling = dict(r.sampling)
    return Model(tokenizer, text_encoder, unet, autoencoder, scheduler, sampling, vocabulary)


def load_model(
    name: str, recipe: Recipe, dim: int | None, device: torch.device
) -> tuple[Model, Recipe, str]:
    """A model to go on from, in float32; the recipe that suits it; and what tells it from others.

    The pictures are of `dim` x `dim` pixels, which becomes the model's own size, or else of the
    size that it has. The noise is that of the model's scheduler.

    Raises:
        ModelError: it cannot be had, or learns by another rule than ours.
        UsageError: it cannot draw pictures of that size.
    """
    parts = load(name, device=device, dtype=torch.float32)
    _check(parts)
    factor = vae_factor(parts.vae)
    width, height = parts.defaults["width"], parts.defaults["height"]
    if dim is None and width != height:
        raise UsageError(
            f"model={name!r} draws {width} x {height} pixels, and training is on squares; say "
            f"with --dim which, {min(width, height)} perhaps."
        )
    size = int(width if dim is None else dim)
    if size % factor or size < factor:
        raise UsageError(
            f"dim={size} is not a multiple of {factor}, the factor of this model's VAE; take "
            f"{max(size - size % factor, factor)}."
        )
    parts.unet.register_to_config(sample_size=size // factor)
    config = parts.scheduler_config
    names = {"beta_start": "beta_start", "beta_end": "beta_end", "timesteps": "num_train_timesteps"}
    noise = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
    noise["prediction_type"] = config.get("prediction_type", "epsilon")
    identity = parts.model.identity()
    model = Model(
        parts.tokenizer,
        parts.text_encoder,
        parts.unet,
        parts.vae,
        {"_class_name": SCHEDULER, **config},
        {k: v for k, v in parts.defaults.items() if k not in ("width", "height")},
        parts.vocabulary,
    )
    recipe = replace(recipe, size=size, unet=replace(recipe.unet, **noise))
    return model, recipe, str(identity["revision"] or identity["sha256"])


def save_model(model: Model, folder: Path, work: Path) -> None:
    """Writes the parts in float16 in the diffusers folder layout, `sdpipe.json` and `words.json`.

    All of it is written inside `work` first. The index is put in place last: as long as it is not
    there, the folder is no model.

    Raises:
        SdpipeError: it cannot be written.
    """
    partial = work / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    hook = transformers_logging.set_tqdm_hook(
        lambda _, args, kwargs: transformers_logging.EmptyTqdm(*args, **kwargs)
    )
    try:
        _write(model, partial)
        # safetensors writes for its owner alone; a model may be read by whoever reads the rest.
        mode = (partial / "model_index.json").stat().st_mode
        names = sorted(p.relative_to(partial) for p in partial.rglob("*") if p.is_file())
        for name in sorted(names, key=lambda name: name.name == "model_index.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            os.chmod(partial / name, mode)
            os.replace(partial / name, folder / name)
    except Exception as error:  # the libraries wrap the system's errors in their own
        raise cannot_write(folder, error) from error
    finally:
        transformers_logging.set_tqdm_hook(hook)
        shutil.rmtree(partial, ignore_errors=True)


def _check(parts: Components) -> None:
    """Refuses a model whose training is another than that of `ddpm`."""
    config, who = parts.scheduler_config, f"model={parts.model.name!r}"
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in PREDICTION_TYPES:
        raise ModelError(
            f"{who} predicts {predicts}, and training here is for models that predict the noise "
            "(epsilon), as those of the family of v1-4 do, or v (v_prediction); take one of them."
        )
    schedule = config.get("beta_schedule", "linear")
    if schedule != "scaled_linear" or config.get("trained_betas") is not None:
        raise ModelError(
            f"{who} was trained with the noise schedule {schedule}, and training here is with "
            "scaled_linear, that of Stable Diffusion; take a model of that family."
        )


def _write(model: Model, folder: Path) -> None:
    model.tokenizer.save_pretrained(folder / "tokenizer")
    for part in ("text_encoder", "unet", "vae"):
        network: Any = getattr(model, part)
        network.half().save_pretrained(folder / part, safe_serialization=True)
    # transformers loads in the type that the configuration names, diffusers in float32: diffusers'
    # own pipeline works only if both are the same.
    config = folder / "text_encoder" / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    _write_json(config, {**values, "dtype": "float32"})
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", model.scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", model.scheduler)
    _write_json(folder / "sdpipe.json", model.sampling)
    if model.vocabulary is not None:
        _write_json(folder / FILE, model.vocabulary.to_json())
    _write_json(folder / "model_index.json", index)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
