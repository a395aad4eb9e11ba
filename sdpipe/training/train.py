"""`train`: the whole way from captioned pictures to a model folder that diffusers opens.

One process, or several that share every step: `accelerate launch -m sdpipe train ...`. Then each
draws its own part of every batch, and the first one writes and speaks.
"""

import contextlib
import hashlib
import random
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, is_bf16_available, parse_flag_from_env
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdpipe import messages, progress
from sdpipe.device import pick_device, pick_dtype
from sdpipe.errors import SdpipeError, SdpipeWarning
from sdpipe.latents import vae_factor
from sdpipe.training import ddpm, text, vae, work
from sdpipe.training.data import (
    Captioned,
    Draws,
    Pictures,
    draw_subjects,
    encode,
    padded,
    squares,
    unit_variance,
    words,
)
from sdpipe.training.fit import fit
from sdpipe.training.glyphs import Emoji
from sdpipe.training.imagefolder import ImageFolder
from sdpipe.training.job import Job
from sdpipe.training.model import Model, load_model, new_model, save_model
from sdpipe.training.recipe import Joint, OtherWords, Recipe, Text, Unet
from sdpipe.training.samples import Sheets

STAGES = ("unet", "joint", "other_words", "both")
"""Those that follow the text encoder's first, in their order."""
SHORT = 1024  # places of the latents, or tokens
Batch = Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Run:
    """What every stage of a training run works with; `folder` holds what it leaves."""

    recipe: Recipe
    model: Model
    folder: Path
    accelerator: Accelerator

    def draws(self) -> Draws:
        """The random numbers of this process."""
        return Draws(self.recipe.seed, self.accelerator.process_index)

    def steps_before(self, stage: str) -> int:
        """How many steps those of `STAGES` take that come before this one: its random numbers are
        its own.
        """
        return sum(getattr(self.recipe, s).steps for s in STAGES[: STAGES.index(stage)])

    def share(self, batch: int) -> int:
        """How much of a batch this process draws."""
        return max(batch // self.accelerator.num_processes, 1)


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
        model = new_model(recipe, pictures.captions(), pictures.learned())
    elif model.learned is not None:
        model = replace(model, learned=model.learned.with_more(pictures.learned()))
    run = Run(recipe, model, job.out / work.FOLDER, accelerator)
    _in_first(accelerator, lambda: _begin(job, run, pictures, origin))

    if origin is None:
        _train_vae(run, pictures)
    latents = encode(pictures, model.vae, run.folder / "latents.safetensors", accelerator)
    if origin is None:
        latents = unit_variance(model.vae, latents)
    data = Captioned(pictures, latents, model.tokenizer)
    if origin is None:
        _train_text_encoder(run, data)
    _train_unet(run, data, "unet", run.recipe.unet)
    if origin is None and run.recipe.joint.steps:
        _train_unet(run, data, "joint", _together(run.recipe.unet, run.recipe.joint))
    if origin is None and run.recipe.other_words.steps:
        _train_other_words(run, pictures)
    if origin is None and run.recipe.both.steps:
        _train_unet(run, data, "both", _together(run.recipe.unet, run.recipe.both))
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
        later = [f"{stage}.checkpoint" for stage in ("decoder", "text", *STAGES)]
        for name in ("latents.safetensors", *later):
            (run.folder / name).unlink(missing_ok=True)  # of another VAE, if there are any
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


def _train_vae(run: Run, pictures: Pictures) -> None:
    """Trains the VAE on squares, and in the end on whole pictures, of which it takes fewer; then
    its decoder alone.
    """
    r, draws, size = run.recipe.vae, run.draws(), run.recipe.size
    factor = vae_factor(run.model.vae)

    def batch(step: int) -> tuple[Tensor, ...]:
        rng, generator = draws.at(step)
        whole = step >= (1 - r.whole) * r.steps
        side = size if whole else r.crop
        pixels = r.batch * r.crop**2 / run.accelerator.num_processes
        x = squares(pictures, side, max(round(pixels / side**2), 1), rng)
        shape = (len(x), r.latent_channels, side // factor, side // factor)
        return x, torch.randn(shape, generator=generator)

    def whole_pictures(step: int) -> tuple[Tensor]:
        pixels = r.batch * r.crop**2 / run.accelerator.num_processes
        rng, _ = draws.at(-1 - step)
        return (squares(pictures, size, max(round(pixels / size**2), 1), rng),)

    loss = vae.NegativeElbo(run.model.vae, r).to(run.accelerator.device)
    rate = r.learning_rate
    where = (run.folder, run.accelerator)
    fit("vae", loss, batch, *where, steps=r.steps, learning_rate=rate, ema=r.ema)
    decoding = vae.DecodingError(run.model.vae, r)
    run.model.vae.decoder.requires_grad_(True)
    rate = r.decoder_rate
    fit(
        "decoder",
        decoding,
        whole_pictures,
        *where,
        steps=r.decoder_steps,
        learning_rate=rate,
        muon_rate=rate,
        ema=r.ema,
    )


def _train_text_encoder(run: Run, data: Captioned) -> None:
    r, draws, count = run.recipe.text, run.draws(), run.share(run.recipe.text.batch)

    def batch(step: int) -> tuple[Tensor, ...]:
        x_0, said = data.batch(count, r, *draws.at(step))
        return said, x_0

    channels, size = data.latents.shape[1:3]
    loss = text.LatentsFromText(run.model.text_encoder, r.grid, channels, size)
    _fit_text_encoder(run, "text", loss, batch, r)


def _train_other_words(run: Run, pictures: Emoji | ImageFolder) -> None:
    r = run.recipe.other_words
    draws, before = run.draws(), run.steps_before("other_words")
    loss, say = _other_words(run, pictures, run.share(r.batch))
    loss.encoder.requires_grad_(True)

    def batch(step: int) -> tuple[Tensor, ...]:
        return say(*draws.at(before + step))

    _fit_text_encoder(run, "other_words", loss, batch, r)


def _other_words(
    run: Run, pictures: Pictures, count: int
) -> tuple[text.OtherWords, Callable[[random.Random, torch.Generator], tuple[Tensor, ...]]]:
    """The loss of saying the same of other words, and what draws it so many captions."""
    r, tokenizer, subjects = run.recipe.other_words, run.model.tokenizer, pictures.subjects()
    if isinstance(pictures, Emoji):  # each name as often, so that picture i shows subject i % N
        pictures = pictures.with_shares(r.shares or pictures.recipe.shares)
    loss = text.OtherWords(run.model.text_encoder, r.kept, r.contrast, padded(subjects, tokenizer))

    def say(rng: random.Random, generator: torch.Generator) -> tuple[Tensor, ...]:
        chosen = draw_subjects(loss.wrong, count, r.hard, len(pictures), generator)
        said, meant = words(pictures, chosen.tolist(), tokenizer, r, rng, generator)
        return said, meant, chosen % len(subjects)

    return loss, say


def _fit_text_encoder(
    run: Run, stage: str, loss: nn.Module, batch: Batch, r: Text | OtherWords
) -> None:
    loss.to(run.accelerator.device)
    with _attention(run.accelerator, run.recipe.tokenizer.length):
        fit(
            stage,
            loss,
            batch,
            run.folder,
            run.accelerator,
            steps=r.steps,
            learning_rate=r.learning_rate,
            muon_rate=r.muon_rate,
        )


def _together(unet: Unet, joint: Joint) -> Unet:
    """The U-Net's training where the text encoder learns with it."""
    return replace(unet, **asdict(joint), train_text_encoder=True)


def _train_unet(run: Run, data: Captioned, stage: str, r: Unet) -> None:
    """Trains the U-Net; the text encoder goes on learning with it, or stays as it is."""
    draws, count, model = run.draws(), run.share(r.batch), run.model
    before = run.steps_before(stage)
    loss = ddpm.DenoisingLoss(model.unet, model.text_encoder, r)
    if r.captions:
        other_words, say = _other_words(run, data.pictures, run.share(r.captions))
        loss = ddpm.WithOtherWords(model.unet, other_words, r)

    def batch(step: int) -> tuple[Tensor, ...]:
        rng, generator = draws.at(before + step)
        x_0, said = data.batch(count, r, rng, generator)
        t = ddpm.draw_timesteps(count, r, generator)
        denoised = x_0, said, t, torch.randn(x_0.shape, generator=generator)
        return denoised + say(rng, generator) if r.captions else denoised

    loss.to(run.accelerator.device)
    loss.unet.requires_grad_(True)
    loss.text_encoder.requires_grad_(r.train_text_encoder)
    sheets = Sheets(data, model, run.recipe.samples, r.steps, run.folder / "samples", stage)
    with _attention(run.accelerator, data.latents[0, 0].numel()):
        fit(
            stage,
            loss,
            batch,
            run.folder,
            run.accelerator,
            steps=r.steps,
            learning_rate=r.learning_rate,
            muon_rate=r.muon_rate,
            warmup=r.warmup,
            ema=r.ema,
            show=sheets,
        )


def _attention(accelerator: Accelerator, places: int) -> contextlib.AbstractContextManager[None]:
    """On short sequences a CPU learns faster without torch's kernel for long ones: the U-Net by a
    sixth, the text encoder by two.
    """
    short = accelerator.device.type == "cpu" and places <= SHORT
    return sdpa_kernel(SDPBackend.MATH) if short else contextlib.nullcontext()
