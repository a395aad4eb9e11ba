"""The four stages of a training: VAE, text encoder, U-Net, and the last two together."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdpipe.latents import vae_factor
from sdpipe.training.dataset import CaptionedLatents, Dataset, StepRng, encode_dataset, random_crops
from sdpipe.training.ddpm import DenoisingLoss, draw_timesteps
from sdpipe.training.loop import fit
from sdpipe.training.model import Model
from sdpipe.training.progress import Progress, no_progress
from sdpipe.training.recipe import DenoisingStage, Recipe, Stage
from sdpipe.training.samples import SampleSheets
from sdpipe.training.text_encoder import LatentRegression
from sdpipe.training.vae import DecoderLoss, NegativeElbo

SHORT_SEQUENCE = 1024  # latent positions, or tokens

Batch = Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Run:
    """What every stage works with. `folder` receives checkpoints, log, latents and samples."""

    recipe: Recipe
    model: Model
    folder: Path
    accelerator: Accelerator
    save_every: float = 60.0
    progress: Progress = no_progress

    @property
    def rng(self) -> StepRng:
        """The random numbers of this process."""
        return StepRng(self.recipe.seed, self.accelerator.process_index)

    def steps_before(self, name: str) -> int:
        """The steps of all stages before this one: each stage has random numbers of its own."""
        stages = self.recipe.stages()
        before = list(stages)[: list(stages).index(name)]
        return sum(stages[stage].total_steps for stage in before)

    def local_batch(self, batch_size: int) -> int:
        """The part of a batch that this process draws."""
        return max(batch_size // self.accelerator.num_processes, 1)

    def encode(self, dataset: Dataset, name: str) -> Tensor:
        """The latents (N, C, h, w) of a dataset, cached in NAME.safetensors."""
        path = self.folder / f"{name}.safetensors"
        progress = partial(self.progress, "encoding the images")
        return encode_dataset(dataset, self.model.vae, path, self.accelerator, progress)


def train_vae(run: Run, dataset: Dataset) -> None:
    """Trains the VAE on crops, then on full images, of which a batch has fewer; then its decoder
    alone.
    """
    recipe, rng, size, vae = run.recipe.vae, run.rng, run.recipe.size, run.model.vae
    factor = vae_factor(vae)

    def count(side: int) -> int:
        """How many crops of a side have the pixels of a batch, in this process."""
        pixels = recipe.batch_size * recipe.crop_size**2 / run.accelerator.num_processes
        return max(round(pixels / side**2), 1)

    def crops(step: int) -> tuple[Tensor, ...]:
        python_rng, generator = rng.at(step)
        is_full = step >= (1 - recipe.full_image_fraction) * recipe.steps
        side = size if is_full else recipe.crop_size
        x = random_crops(dataset, side, count(side), python_rng)
        shape = (len(x), recipe.latent_channels, side // factor, side // factor)
        return x, torch.randn(shape, generator=generator)

    def full_images(step: int) -> tuple[Tensor]:
        python_rng, _ = rng.at(-1 - step)
        return (random_crops(dataset, size, count(size), python_rng),)

    loss = NegativeElbo(vae, recipe).to(run.accelerator.device)
    _fit(
        run,
        "vae",
        loss,
        crops,
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        ema_decay=recipe.ema_decay,
    )
    vae.decoder.requires_grad_(True)
    rate = recipe.decoder_learning_rate
    _fit(
        run,
        "decoder",
        DecoderLoss(vae, recipe),
        full_images,
        steps=recipe.decoder_steps,
        learning_rate=rate,
        muon_learning_rate=rate,
        ema_decay=recipe.ema_decay,
    )


def train_text_encoder(run: Run, data: CaptionedLatents) -> None:
    """Trains the text encoder alone, by regression of the latents from the caption."""
    recipe, rng = run.recipe.text_encoder, run.rng

    def batch(step: int) -> tuple[Tensor, ...]:
        x_0, tokens = data.batch(run.local_batch(recipe.batch_size), recipe, *rng.at(step))
        return tokens, x_0

    channels, size = data.latents.shape[1:3]
    loss = LatentRegression(run.model.text_encoder, recipe.grid_size, channels, size)
    fit_stage(run, "text_encoder", recipe, loss, batch, run.recipe.tokenizer.max_length)


def train_unet(run: Run, data: CaptionedLatents) -> None:
    """Trains the U-Net in front of a frozen text encoder."""
    train_denoiser(run, data, "unet", run.recipe.unet, run.steps_before("unet"))


def train_jointly(run: Run, data: CaptionedLatents) -> None:
    """Trains the U-Net and the text encoder together."""
    if run.recipe.joint.steps:
        train_denoiser(run, data, "joint", run.recipe.joint, run.steps_before("joint"))


def train_denoiser(
    run: Run, data: CaptionedLatents, name: str, stage: DenoisingStage, first_step: int = 0
) -> None:
    """Trains by DDPM's algorithm, with random numbers from `first_step` on."""

    def batch(step: int) -> tuple[Tensor, ...]:
        python_rng, generator = run.rng.at(first_step + step)
        x_0, tokens = data.batch(run.local_batch(stage.batch_size), stage, python_rng, generator)
        t = draw_timesteps(
            len(x_0), run.recipe.unet.num_train_timesteps, stage.timestep_exponent, generator
        )
        return x_0, tokens, t, torch.randn(x_0.shape, generator=generator)

    loss = DenoisingLoss(run.model.unet, run.model.text_encoder, run.recipe.unet)
    fit_denoiser(run, data, name, stage, loss, batch)


def fit_denoiser(
    run: Run,
    data: CaptionedLatents,
    name: str,
    stage: DenoisingStage,
    loss: DenoisingLoss,
    batch: Batch,
) -> None:
    """Fits the networks of a denoising loss, and draws samples with them from time to time."""
    loss.unet.requires_grad_(True)
    loss.text_encoder.requires_grad_(stage.train_text_encoder)
    positions = data.latents[0, 0].numel()
    fit_stage(
        run,
        name,
        stage,
        loss,
        batch,
        positions,
        warmup_steps=stage.warmup_steps,
        ema_decay=stage.ema_decay,
        on_checkpoint=SampleSheets(
            data, run.model, run.recipe.samples, stage.steps, run.folder / "samples", name
        ),
    )


def fit_stage(
    run: Run, name: str, stage: Stage, loss: nn.Module, batch: Batch, positions: int, **more: Any
) -> None:
    """Fits a loss whose networks attend over this many positions; `more` goes to `fit`.

    On short sequences a CPU learns faster without torch's kernel for long ones: the U-Net by a
    sixth, the text encoder by half.
    """
    loss.to(run.accelerator.device)
    is_short = run.accelerator.device.type == "cpu" and positions <= SHORT_SEQUENCE
    with sdpa_kernel(SDPBackend.MATH) if is_short else contextlib.nullcontext():
        _fit(
            run,
            name,
            loss,
            batch,
            steps=stage.steps,
            learning_rate=stage.learning_rate,
            muon_learning_rate=stage.muon_learning_rate,
            **more,
        )


def _fit(run: Run, name: str, loss: nn.Module, batch: Batch, **more: Any) -> None:
    """`fit` with what all stages of a run share."""
    fit(
        name,
        loss,
        batch,
        run.folder,
        run.accelerator,
        save_every=run.save_every,
        progress=run.progress,
        **more,
    )
