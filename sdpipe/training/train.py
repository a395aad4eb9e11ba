"""`train`: the whole way from a font to a model folder that diffusers opens."""

import json
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from sdpipe.device import pick_device, pick_dtype
from sdpipe.latents import pil_to_latents, to_tensor
from sdpipe.training import ddpm, glyphs, text, vae
from sdpipe.training.fit import fit
from sdpipe.training.recipe import EMOJI, Recipe, load_recipe
from sdpipe.training.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Captioned:
    """What the text encoder and the U-Net learn from: encoded pictures and their captions."""

    latents: Tensor  # (N, C, h, w), scaled
    tokens: Tensor  # (N, L)
    empty: Tensor  # (1, L), the empty caption


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
    torch.manual_seed(recipe.seed)
    work = out / "training"
    work.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(recipe_path, work / "recipe.toml")

    sources = _rendered(recipe)
    print(f"{len(sources)} glyphs, {recipe.pictures.renderings} pictures of each", file=sys.stderr)
    captions = [glyphs.caption(n, c) for n in sources for c in (None, *glyphs.COLOURS)]
    tokenizer = train_tokenizer(captions, recipe.tokenizer.vocabulary, recipe.tokenizer.length)
    autoencoder = _train_vae(recipe, list(sources.values()), place, work)
    data = _encode(recipe, sources, autoencoder, tokenizer, work)
    text_encoder = _train_text_encoder(recipe, data, tokenizer, place, work)
    unet, text_encoder = _train_unet(recipe, data, text_encoder, place, work)
    _train_decoder(recipe, list(sources.values()), autoencoder, place, work)
    return _save(out / "model", recipe, tokenizer, text_encoder, unet, autoencoder)


def _rendered(recipe: Recipe) -> dict[str, Image.Image]:
    """Every glyph of the recipe by name, but those that the font renders empty."""
    font = glyphs.load_font()
    rendered = {g.name: glyphs.render(g.text, font) for g in glyphs.glyphs(recipe.pictures)}
    return {name: glyph for name, glyph in rendered.items() if glyph.getbbox() is not None}


def _rng(recipe: Recipe, step: int) -> tuple[random.Random, torch.Generator]:
    """The random numbers of one step: the same after a restart."""
    seed = recipe.seed * 1_000_003 + step
    return random.Random(seed), torch.Generator().manual_seed(seed)


def _autocast(device: torch.device) -> AbstractContextManager[object]:
    """Half precision for the matrix products where the device has it, float32 elsewhere."""
    half = pick_dtype("auto", device) != torch.float32
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def _train_vae(
    recipe: Recipe, rendered: list[Image.Image], device: torch.device, work: Path
) -> AutoencoderKL:
    model = vae.build_vae(recipe.vae, recipe.pictures.size).to(device)

    def loss(step: int) -> Tensor:
        x, generator = _crops(recipe, rendered, step, recipe.vae.batch)
        with _autocast(device):
            return vae.negative_elbo(
                model, x.to(device), generator, edges=recipe.vae.edges, kl=recipe.vae.kl
            )

    r = recipe.vae
    fit("vae", model, loss, work, steps=r.steps, learning_rate=r.learning_rate)
    return model


def _train_decoder(
    recipe: Recipe,
    rendered: list[Image.Image],
    autoencoder: AutoencoderKL,
    device: torch.device,
    work: Path,
) -> None:
    """Trains the VAE's second half on: the same loss, but the latents no longer move."""
    trained = nn.ModuleList([autoencoder.post_quant_conv, autoencoder.decoder])
    trained.requires_grad_(True).train()

    def loss(step: int) -> Tensor:
        x, generator = _crops(recipe, rendered, recipe.vae.steps + step, recipe.decoder.batch)
        with _autocast(device):
            return vae.negative_elbo(
                autoencoder, x.to(device), generator, edges=recipe.vae.edges, kl=0.0
            )

    r = recipe.decoder
    fit("decoder", trained, loss, work, steps=r.steps, learning_rate=r.learning_rate)


def _crops(
    recipe: Recipe, rendered: list[Image.Image], step: int, count: int
) -> tuple[Tensor, torch.Generator]:
    """Squares cut from pictures of the recipe's kind, (count, 3, H, W) in [-1, 1]."""
    rng, generator = _rng(recipe, step)
    pictures = [
        _crop(glyphs.draw_at_random(glyph, recipe.pictures, rng)[0], recipe.vae.crop, rng)
        for glyph in rng.sample(rendered, count)
    ]
    return torch.stack([to_tensor(picture) for picture in pictures]), generator


def _crop(picture: Image.Image, side: int, rng: random.Random) -> Image.Image:
    left, top = (rng.randint(0, length - side) for length in picture.size)
    return picture.crop((left, top, left + side, top + side))


def _encode(
    recipe: Recipe,
    sources: dict[str, Image.Image],
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    work: Path,
) -> Captioned:
    """Renders and encodes what the other parts learn from, and scales latents to unit variance.

    The latents are kept in a file: a run that goes on does not encode again.
    """
    rng, _ = _rng(recipe, -1)
    names, pictures = [], []
    for name, glyph in sources.items():
        for _ in range(recipe.pictures.renderings):
            picture, colour = glyphs.draw_at_random(glyph, recipe.pictures, rng)
            names.append(glyphs.caption(name, colour))
            pictures.append(picture)
    path = work / "latents.safetensors"
    if not path.exists():
        with _autocast(autoencoder.device):
            encoded = [pil_to_latents(autoencoder, p).cpu() for p in _batches(pictures, 64)]
        partial = path.with_suffix(".partial")
        save_file({"latents": torch.cat(encoded)}, partial)
        partial.replace(path)
    latents = load_file(path)["latents"]
    scale = 1 / latents.std().item()
    autoencoder.register_to_config(scaling_factor=scale)

    def tokens(captions: list[str]) -> Tensor:
        cut = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return cut.input_ids

    return Captioned(latents * scale, tokens(names), tokens([""]))


def _batches(pictures: list[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    return (pictures[i : i + size] for i in range(0, len(pictures), size))


def _train_text_encoder(
    recipe: Recipe, data: Captioned, tokenizer: CLIPTokenizer, device: torch.device, work: Path
) -> CLIPTextModel:
    model = text.build_text_encoder(recipe.text, tokenizer)
    head = text.ContrastiveHead(data.latents[0].numel(), recipe.text.hidden_size)
    both = nn.ModuleDict({"encoder": model, "head": head}).to(device)

    def loss(step: int) -> Tensor:
        _, generator = _rng(recipe, step)
        chosen = torch.randint(len(data.latents), (recipe.text.batch,), generator=generator)
        tokens = data.tokens[chosen].to(device)
        same = (tokens[:, None] == tokens).all(dim=-1)
        with _autocast(device):
            pooled = model(tokens).pooler_output
            return text.contrastive_loss(head(data.latents[chosen].to(device), pooled), same)

    r = recipe.text
    fit("text", both, loss, work, steps=r.steps, learning_rate=r.learning_rate)
    return model


def _train_unet(
    recipe: Recipe, data: Captioned, text_encoder: CLIPTextModel, device: torch.device, work: Path
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Trains the U-Net, and the text encoder on with it."""
    r = recipe.unet
    channels, size = data.latents.shape[1:3]
    model = ddpm.build_unet(r, size, channels, recipe.text.hidden_size)
    both = nn.ModuleDict({"unet": model, "text_encoder": text_encoder.requires_grad_(True)})
    both.to(device).train()
    alpha_bar = ddpm.cumulative_alpha(r.beta_start, r.beta_end, r.timesteps).to(device)

    def loss(step: int) -> Tensor:
        _, generator = _rng(recipe, step)
        chosen = torch.randint(len(data.latents), (r.batch,), generator=generator)
        x_0 = data.latents[chosen].to(device)
        dropped = torch.rand(r.batch, 1, generator=generator) < r.dropped
        tokens = torch.where(dropped, data.empty, data.tokens[chosen]).to(device)
        t = torch.randint(r.timesteps, (r.batch,), generator=generator).to(device)
        eps = torch.randn(x_0.shape, generator=generator).to(device)
        with _autocast(device):
            embedded = text_encoder(tokens).last_hidden_state
            return ddpm.denoising_loss(model, x_0, embedded, t, eps, alpha_bar, r.weight)

    trained = fit(
        "unet",
        both,
        loss,
        work,
        steps=r.steps,
        learning_rate=r.learning_rate,
        warmup=r.warmup,
        ema=r.ema,
    )
    assert isinstance(trained, nn.ModuleDict)
    return trained["unet"], trained["text_encoder"]


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
