"""`train`: the whole way from captioned pictures to a model folder that diffusers opens.

One process, or several that share every step: `accelerate launch -m sdpipe train ...`. Then each
draws its own part of every batch, and the first one writes and speaks.
"""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, is_bf16_available, parse_flag_from_env

from sdpipe.cli import console as messages
from sdpipe.cli import progress
from sdpipe.errors import SdpipeError, SdpipeWarning
from sdpipe.runtime.device import pick_device, pick_dtype
from sdpipe.training import run_folder as work
from sdpipe.training.dataset import Captioned, encode, unit_variance
from sdpipe.training.emoji.glyphs import Emoji
from sdpipe.training.imagefolder import ImageFolder
from sdpipe.training.job import Job
from sdpipe.training.model import load_model, new_model, save_model
from sdpipe.training.recipe import Recipe
from sdpipe.training.stages import (
    Run,
    train_further,
    train_text_encoder,
    train_unet,
    train_vae,
)


def train(job: Job) -> Path | None:
    """Trains tokenizer, VAE, text encoder and U-Net, and writes the model to `job.out`.

    Or, where the job goes on from a model, the text encoder and the U-Net: the VAE and with it the
    meaning of the latents stay as they are, and so does the tokenizer, which spells new words.

    Checkpoints stand in `job.out`/training while it runs; the same job, started again, goes on from
    them. Returns `job.out`, in the first process; None in others.

    Raises:
        UsageError: what was asked for cannot be trained.
        ModelError: the model to go on from cannot be had, or does not fit.
        NotFiniteError: a loss is no longer a number.
        SdpipeError: the font or a package is missing, memory or disk is full.
    """
    accelerator = make_accelerator(job.device)
    try:
        _train(job, accelerator)
        accelerator.end_training()
    except (SdpipeError, torch.OutOfMemoryError) as error:
        if not accelerator.is_main_process and isinstance(error, SdpipeError):
            raise SystemExit(1) from None  # the first process says why
        if isinstance(error, SdpipeError):
            raise
        raise SdpipeError(
            f"{accelerator.device} is out of memory; train with a smaller --dim, or with a smaller "
            "batch in a --recipe of your own."
        ) from error
    return job.out if accelerator.is_main_process else None


def _train(job: Job, accelerator: Accelerator) -> None:
    recipe, model, origin = job.recipe, None, None
    if job.start is not None:
        with accelerator.main_process_first():
            model, recipe, origin = load_model(job.start, recipe, job.dim, accelerator.device)
    pictures = _pictures(job, recipe)
    if model is None:
        model = new_model(recipe, pictures.captions(), pictures.vocabulary())
    elif model.vocabulary is not None:
        model = replace(model, vocabulary=model.vocabulary.merge(pictures.vocabulary()))
    run = Run(recipe, model, job.out / work.FOLDER, accelerator)
    _in_first(accelerator, lambda: _begin(job, run, pictures, origin))

    if origin is None:
        train_vae(run, pictures)
    latents = encode(pictures, model.vae, run.folder / "latents.safetensors", accelerator)
    if origin is None:
        latents = unit_variance(model.vae, latents)
    data = Captioned(pictures, latents, model.tokenizer)
    if origin is None:
        train_text_encoder(run, data)
    train_unet(run, data, "unet", run.recipe.unet)
    if origin is None:
        train_further(run, data)
    _in_first(accelerator, lambda: save_model(model, job.out, run.folder))


def _pictures(job: Job, recipe: Recipe) -> Emoji | ImageFolder:
    """What is learned from; those of a folder have yet to be read."""
    if job.entries is not None:
        return ImageFolder(job.entries, recipe.size, job.out / work.FOLDER / "pictures.rgb")
    assert recipe.scenes is not None
    return Emoji(recipe.scenes, recipe.size, recipe.seed)


def make_accelerator(device: str) -> Accelerator:
    """Where training runs: as it was asked for, or as `accelerate launch` has it.

    Raises:
        UsageError: the device is unknown, or not here.
    """
    place = pick_device(device)
    if place.type == "cuda" and place.index is not None:
        torch.cuda.set_device(place)
    on_cpu = place.type == "cpu" or (device == "auto" and parse_flag_from_env("ACCELERATE_USE_CPU"))
    # The others wait while the first encodes; for a large folder that takes longer than usual.
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))
    half = pick_dtype("auto", state.device) != torch.float32 and is_bf16_available()
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if half else "no")


def _in_first(accelerator: Accelerator, task: Callable[[], None]) -> None:
    """Does something in the first process; the others wait for it, and end where it fails."""
    failed: list[Any] = [False]
    try:
        if accelerator.is_main_process:
            task()
    except BaseException:
        failed = [True]
        raise
    finally:
        if accelerator.num_processes > 1:
            broadcast_object_list(failed)
    if failed[0]:
        raise SystemExit(1)


def _begin(job: Job, run: Run, pictures: Emoji | ImageFolder, origin: str | None) -> None:
    """Claims the folder, reads the pictures, and says what is learned from."""
    if isinstance(pictures, ImageFolder):
        data = pictures.fingerprint()
    else:
        inks = hashlib.sha256(b"".join(ink.tobytes() for ink in pictures.inks.values()))
        data = [["the font", f"{len(pictures.names)} glyphs", inks.hexdigest()]]
    begun_with = {"recipe": run.recipe.numbers(), "from": origin, "data": data}
    new = work.claim(job.out, begun_with, job.recipe_path.read_text(encoding="utf-8"))
    if origin is None and not (run.folder / "vae.checkpoint").exists():
        latents = (run.folder / f"{name}.safetensors" for name in ("latents", "rivals"))
        for path in (*latents, *run.folder.glob("*.checkpoint")):
            path.unlink(missing_ok=True)  # of another VAE, if there are any
    if not isinstance(pictures, ImageFolder):
        messages.say(f"{len(pictures.names)} glyphs, {len(pictures)} pictures")
        return
    try:
        with progress.bar("reading the pictures") as move:
            pictures.prepare(move)
    except BaseException:
        if new:  # one of them will be mended, and then it is other data
            work.discard(job.out)
        raise
    messages.say(f"{len(pictures)} captioned pictures, {pictures.size} x {pictures.size}")
    tokenizer = run.model.tokenizer
    length = tokenizer.model_max_length
    cut = [t for t in tokenizer(pictures.captions(), verbose=False).input_ids if len(t) > length]
    if cut:
        warnings.warn(
            f"the text encoder takes {length - 2} tokens, and of the {len(pictures)} captions "
            f"{len(cut)} have more; what comes after is not learned.",
            SdpipeWarning,
            stacklevel=2,
        )
