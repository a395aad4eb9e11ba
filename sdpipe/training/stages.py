"""The four stages of a training: VAE, text encoder, U-Net, and the last two together."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdpipe.components import Components
from sdpipe.errors import SdpipeError
from sdpipe.io.files import atomic_write
from sdpipe.latents import pil_to_latents, vae_factor
from sdpipe.training.dataset import CaptionedLatents, Dataset, StepRng, random_crops
from sdpipe.training.ddpm import DenoisingLoss, draw_timesteps
from sdpipe.training.loop import Progress, fit, no_progress
from sdpipe.training.recipe import DenoisingStage, Recipe
from sdpipe.training.run_folder import RESUME
from sdpipe.training.samples import SampleSheets
from sdpipe.training.text_encoder import LatentRegression
from sdpipe.training.vae import DecoderLoss, NegativeElbo

ENCODE_BATCH = 8
"""Images that are encoded at once: the activations of more do not fit into a CPU's cache."""
SHORT_SEQUENCE = 1024  # latent positions, or tokens

Batch = Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Run:
    """What every stage works with. `folder` receives checkpoints, log, latents and samples."""

    recipe: Recipe
    model: Components
    folder: Path
    accelerator: Accelerator
    save_every: float = 60.0
    progress: Progress = no_progress

    @property
    def rng(self) -> StepRng:
        """The random numbers of this process."""
        return StepRng(self.recipe.seed, self.accelerator.process_index)

    def local_batch(self, batch_size: int) -> int:
        """The part of a batch that this process draws."""
        return max(batch_size // self.accelerator.num_processes, 1)

    def encode(self, dataset: Dataset, name: str) -> Tensor:
        """The latents of all images as the VAE's configuration scales them, (N, C, h, w), in
        float16. They are cached in NAME.safetensors, which the first process writes.

        Raises:
            SdpipeError: the file is damaged, or cannot be written.
        """
        path = self.folder / f"{name}.safetensors"
        if self.accelerator.is_main_process and not path.exists():
            encoded = []
            with self.accelerator.autocast():
                for start in range(0, len(dataset), ENCODE_BATCH):
                    stop = min(start + ENCODE_BATCH, len(dataset))
                    images = [dataset.image(i) for i in range(start, stop)]
                    encoded.append(pil_to_latents(self.model.vae, images).half().cpu())
                    self.progress("encoding the images", stop, len(dataset))
            with atomic_write(path, RESUME) as file:
                file.write(save({"latents": torch.cat(encoded).contiguous()}))
        self.accelerator.wait_for_everyone()
        try:
            return load_file(path)["latents"]
        except (OSError, KeyError, SafetensorError) as error:
            raise SdpipeError(
                str(path),
                f"is damaged ({error})",
                "delete it, and the same command writes it again",
            ) from error

    def fit(
        self, name: str, loss: nn.Module, batch: Batch, positions: int = 0, **options: Any
    ) -> None:
        """`loop.fit` of a loss whose networks attend over this many positions, if they do.

        On short sequences a CPU learns faster without torch's kernel for long ones: the U-Net by a
        sixth, the text encoder by half.
        """
        device = self.accelerator.device
        is_short = device.type == "cpu" and positions <= SHORT_SEQUENCE
        with sdpa_kernel(SDPBackend.MATH) if is_short else contextlib.nullcontext():
            fit(
                name,
                loss.to(device),
                batch,
                self.folder,
                self.accelerator,
                save_every=self.save_every,
                progress=self.progress,
                **options,
            )


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

    run.fit(
        "vae",
        NegativeElbo(vae, recipe),
        crops,
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        ema_decay=recipe.ema_decay,
    )
    vae.decoder.requires_grad_(True)
    run.fit(
        "decoder",
        DecoderLoss(vae, recipe),
        full_images,
        steps=recipe.decoder_steps,
        learning_rate=recipe.decoder_learning_rate,
        muon_learning_rate=recipe.decoder_learning_rate,
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
    run.fit("text_encoder", loss, batch, run.recipe.tokenizer.max_length, **recipe.options)


def train_denoiser(
    run: Run, data: CaptionedLatents, name: str, stage: DenoisingStage, first_step: int = 0
) -> None:
    """Trains by DDPM's algorithm, with random numbers from `first_step` on: the U-Net, and with it
    the text encoder unless the stage freezes it.
    """

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
    sheets = SampleSheets(
        data, run.model, run.recipe.samples, stage.steps, run.folder / "samples", name
    )
    positions = data.latents[0, 0].numel()
    run.fit(name, loss, batch, positions, on_checkpoint=sheets, **stage.options)
