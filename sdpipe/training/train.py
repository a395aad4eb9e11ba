"""`train`: the whole way from captioned pictures to a model folder that diffusers opens."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sdpipe.device import pick_device, pick_dtype
from sdpipe.latents import vae_factor
from sdpipe.training import ddpm, text, vae
from sdpipe.training.data import Captioned, Draws, Pictures, encode, squares
from sdpipe.training.fit import fit
from sdpipe.training.glyphs import Emoji
from sdpipe.training.recipe import EMOJI, Recipe, load_recipe
from sdpipe.training.tokenizer import train_tokenizer


def train(
    recipe_path: Path = EMOJI, out: Path = Path("runs/emoji"), *, device: str = "auto"
) -> Path:
    """Trains tokenizer, VAE, text encoder and U-Net by a recipe, and writes the model to `out`.

    Checkpoints stand in `out`/training while it runs; started again with the same `out`, it goes
    on from them. Returns the folder of the finished model, `out`/model.

    Raises:
        UsageError: the recipe or the device cannot be used.
        SdpipeError: the font or the package with the glyphs' names is missing.
    """
    recipe = load_recipe(recipe_path)
    place = pick_device(device)
    half = pick_dtype("auto", place) != torch.float32
    accelerator = Accelerator(cpu=place.type == "cpu", mixed_precision="bf16" if half else "no")
    work = out / "training"
    work.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(recipe_path, work / "recipe.toml")

    assert recipe.scenes is not None
    pictures = Emoji(recipe.scenes, recipe.size, recipe.seed)
    print(f"{len(pictures.names)} glyphs, {len(pictures)} pictures", file=sys.stderr)

    torch.manual_seed(recipe.seed)
    learned = recipe.tokenizer
    tokenizer = train_tokenizer(pictures.captions(), learned.vocabulary, learned.length)
    autoencoder = vae.build_vae(recipe.vae, recipe.size)
    _train_vae(recipe, pictures, autoencoder, work, accelerator)
    latents = encode(pictures, autoencoder, work / "latents.safetensors", accelerator)
    data = Captioned(pictures, latents, tokenizer)
    text_encoder = text.build_text_encoder(recipe.text, tokenizer)
    _train_text_encoder(recipe, data, text_encoder, work, accelerator)
    channels, size = latents.shape[1:3]
    unet = ddpm.build_unet(recipe.unet, size, channels, recipe.text.hidden_size)
    _train_unet(recipe, data, text_encoder, unet, work, accelerator)
    if accelerator.is_main_process:
        _save(out / "model", recipe, tokenizer, text_encoder, unet, autoencoder)
    return out / "model"


def _train_vae(
    recipe: Recipe,
    pictures: Pictures,
    autoencoder: AutoencoderKL,
    work: Path,
    accelerator: Accelerator,
) -> None:
    """Trains the VAE on squares, and in the end on whole pictures, of which it takes fewer."""
    r = recipe.vae
    draws = Draws(recipe.seed, accelerator.process_index)
    factor = vae_factor(autoencoder)

    def batch(step: int) -> tuple[Tensor, ...]:
        rng, generator = draws.at(step)
        whole = step >= (1 - r.whole) * r.steps
        side = recipe.size if whole else r.crop
        pixels = r.batch * r.crop**2 / accelerator.num_processes
        x = squares(pictures, side, max(round(pixels / side**2), 1), rng)
        shape = (len(x), r.latent_channels, side // factor, side // factor)
        return x, torch.randn(shape, generator=generator)

    loss = vae.NegativeElbo(autoencoder, r).to(accelerator.device)
    rate = r.learning_rate
    fit("vae", loss, batch, work, accelerator, steps=r.steps, learning_rate=rate, ema=r.ema)


def _train_text_encoder(
    recipe: Recipe,
    data: Captioned,
    text_encoder: CLIPTextModel,
    work: Path,
    accelerator: Accelerator,
) -> None:
    r = recipe.text
    draws = Draws(recipe.seed, accelerator.process_index)
    count = max(r.batch // accelerator.num_processes, 1)

    def batch(step: int) -> tuple[Tensor, ...]:
        x_0, tokens = data.batch(count, recipe.unet.dropped / 4, *draws.at(step))
        return tokens, x_0

    channels, size = data.latents.shape[1:3]
    loss = text.LatentsFromText(text_encoder, r.grid, channels, size).to(accelerator.device)
    fit("text", loss, batch, work, accelerator, steps=r.steps, learning_rate=r.learning_rate)


def _train_unet(
    recipe: Recipe,
    data: Captioned,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    work: Path,
    accelerator: Accelerator,
) -> None:
    """Trains the U-Net, and the text encoder on with it."""
    r = recipe.unet
    draws = Draws(recipe.seed, accelerator.process_index)
    count = max(r.batch // accelerator.num_processes, 1)

    def batch(step: int) -> tuple[Tensor, ...]:
        rng, generator = draws.at(step)
        x_0, tokens = data.batch(count, r.dropped, rng, generator)
        t = torch.randint(r.timesteps, (count,), generator=generator)
        return x_0, tokens, t, torch.randn(x_0.shape, generator=generator)

    text_encoder.requires_grad_(True)
    loss = ddpm.DenoisingLoss(unet, text_encoder, r).to(accelerator.device)
    fit(
        "unet",
        loss,
        batch,
        work,
        accelerator,
        steps=r.steps,
        learning_rate=r.learning_rate,
        warmup=r.warmup,
        ema=r.ema,
    )


def _save(
    folder: Path,
    recipe: Recipe,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    autoencoder: AutoencoderKL,
) -> Path:
    """Writes the five parts in float16 in the diffusers folder layout, and `sdpipe.json`."""
    tokenizer.save_pretrained(folder / "tokenizer")
    for name, model in (("text_encoder", text_encoder), ("unet", unet), ("vae", autoencoder)):
        model.half().save_pretrained(folder / name, safe_serialization=True)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "LMSDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    # Only what was trained with: where steps are placed is for each scheduler's class to say.
    scheduler = {
        "_class_name": "LMSDiscreteScheduler",
        "_diffusers_version": diffusers.__version__,
        "beta_start": recipe.unet.beta_start,
        "beta_end": recipe.unet.beta_end,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": recipe.unet.timesteps,
        "prediction_type": "epsilon",
        "steps_offset": 1,
    }
    (folder / "scheduler").mkdir(exist_ok=True)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(folder / "model_index.json", index)
    _write_json(folder / "sdpipe.json", recipe.sampling)
    return folder


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
