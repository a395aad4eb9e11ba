"""The model of a run: built from a recipe or loaded, and saved in the diffusers folder layout."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging as transformers_logging

from sdpipe.components import Components, ModelInfo, load
from sdpipe.errors import ModelError, UsageError
from sdpipe.io.files import write_error
from sdpipe.latents import vae_factor
from sdpipe.loading.vocabulary import FILE
from sdpipe.prompt.vocabulary import Vocabulary
from sdpipe.training.modelspec import add_notes, modelspec
from sdpipe.training.networks import build_text_encoder, build_unet, build_vae
from sdpipe.training.recipe import Recipe
from sdpipe.training.run_folder import RESUME
from sdpipe.training.tokenizer import train_tokenizer

SCHEDULER = "LMSDiscreteScheduler"


def new_model(
    recipe: Recipe, captions: Sequence[str], vocabulary: Vocabulary | None = None
) -> Components:
    """Builds untrained networks, and learns the tokenizer from the captions.

    vocabulary: the words of its captions, for its `words.json`; None if it may know any word.

    Raises:
        UsageError: a network of the recipe cannot be built.
    """
    r = recipe
    torch.manual_seed(r.seed)
    tokenizer = train_tokenizer(captions, r.tokenizer.vocab_size, r.tokenizer.max_length)
    try:
        vae = build_vae(r.vae, r.size)
        text_encoder = build_text_encoder(r.text_encoder, tokenizer)
        size = r.size // vae_factor(vae)
        unet = build_unet(r.unet, size, r.vae.latent_channels, r.text_encoder.hidden_size)
    except (ValueError, ZeroDivisionError, StrictDataclassError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError("the recipe", f"has networks that cannot be built: {reason}") from error
    # No more than the forward process: the placement of steps is each scheduler's own.
    scheduler = {
        "_class_name": SCHEDULER,
        "_diffusers_version": diffusers.__version__,
        "beta_start": r.unet.beta_start,
        "beta_end": r.unet.beta_end,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": r.unet.num_train_timesteps,
        "prediction_type": r.unet.prediction_type,
        "steps_offset": 1,
    }
    return Components(
        tokenizer,
        text_encoder,
        unet,
        vae,
        scheduler,
        {**r.sampling, "width": r.size, "height": r.size},
        unet.device,
        unet.dtype,
        ModelInfo("parts"),
        vocabulary=vocabulary,
    )


def load_model(
    name: str, recipe: Recipe, dim: int | None, device: torch.device
) -> tuple[Components, Recipe, str]:
    """Loads a model to fine-tune, in float32; returns it, the recipe with its size and its forward
    process, and its revision or hash.

    dim: pixels a side, which becomes the model's size; None keeps that of the model.

    Raises:
        ModelError: it cannot be loaded, or was trained in another way.
        UsageError: it cannot draw images of that size.
    """
    model = load(name, device=device, dtype=torch.float32)
    _check(model)
    factor = vae_factor(model.vae)
    width, height = model.defaults["width"], model.defaults["height"]
    if dim is None and width != height:
        raise UsageError(
            f"model={name!r}",
            f"draws {width} x {height} pixels, and training needs a square",
            f"give its side, such as --dim {min(width, height)}",
        )
    size = int(width if dim is None else dim)
    if size % factor or size < factor:
        raise UsageError(
            f"dim={size}",
            f"is not a multiple of {factor}, the factor of this model's VAE",
            f"take {max(size - size % factor, factor)}",
        )
    model.unet.register_to_config(sample_size=size // factor)
    config = {"prediction_type": "epsilon", **model.scheduler_config}
    names = ("beta_start", "beta_end", "num_train_timesteps", "prediction_type")
    process = {name: config[name] for name in names if name in config}
    identity = model.model.identity()
    recipe = replace(recipe, size=size, unet=replace(recipe.unet, **process))
    return model, recipe, str(identity["revision"] or identity["sha256"])


def save_model(model: Components, folder: Path, work: Path) -> None:
    """Writes the parts in float16 in the diffusers folder layout, `sdpipe.json` and `words.json`.

    They are written inside `work` first, then moved, the index last: without it a folder is not a
    model.

    Raises:
        SdpipeError: it cannot be written.
    """
    partial = work / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    hook = transformers_logging.set_tqdm_hook(
        lambda _, args, kwargs: transformers_logging.EmptyTqdm(*args, **kwargs)
    )
    try:
        _write(model, partial, folder.resolve().name)
        # safetensors makes its files readable for their owner alone; they get the mode of the rest.
        mode = (partial / "model_index.json").stat().st_mode
        names = sorted(p.relative_to(partial) for p in partial.rglob("*") if p.is_file())
        for name in sorted(names, key=lambda name: name.name == "model_index.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            os.chmod(partial / name, mode)
            os.replace(partial / name, folder / name)
    except Exception as error:  # the libraries wrap the system's errors in their own
        raise write_error(folder, error, RESUME) from error
    finally:
        transformers_logging.set_tqdm_hook(hook)
        shutil.rmtree(partial, ignore_errors=True)


def _check(model: Components) -> None:
    """Refuses a model that `ddpm` cannot train further."""
    config = model.scheduler_config
    schedule = config.get("beta_schedule", "linear")
    if schedule != "scaled_linear" or config.get("trained_betas") is not None:
        raise ModelError(
            f"model={model.model.name!r}",
            f"was trained with the noise schedule {schedule}, and training is for scaled_linear",
            "take a model of the family of Stable Diffusion 1 or 2",
        )


def _write(model: Components, folder: Path, title: str) -> None:
    notes = modelspec(model, title)
    model.tokenizer.save_pretrained(folder / "tokenizer")
    for part in ("text_encoder", "unet", "vae"):
        network: Any = getattr(model, part)
        network.half().save_pretrained(folder / part, safe_serialization=True)
        for file in (folder / part).glob("*.safetensors"):
            add_notes(file, notes)
    # transformers loads in the dtype of the configuration, diffusers in float32; diffusers' own
    # pipeline needs both to be the same.
    config = folder / "text_encoder" / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    _write_json(config, {**values, "dtype": "float32"})
    scheduler = {"_class_name": SCHEDULER, **model.scheduler_config}
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    sampling = {k: v for k, v in model.defaults.items() if k not in ("width", "height")}
    _write_json(folder / "sdpipe.json", sampling)
    if model.vocabulary is not None:
        _write_json(folder / FILE, model.vocabulary.to_json())
    _write_json(folder / "model_index.json", index)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
