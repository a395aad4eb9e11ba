"""`train`: from captioned images to a model folder that diffusers opens.

It runs in one process, or in several that share every step: `accelerate launch -m sdpipe train`.
Then each draws its own part of every batch, and only the first writes and reports.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, is_bf16_available, parse_flag_from_env

from sdpipe.errors import SdpipeError, UsageError, warn
from sdpipe.io.claims import claim
from sdpipe.runtime.device import pick_device, pick_dtype
from sdpipe.training.adapter import save_lora
from sdpipe.training.consistency import distill
from sdpipe.training.dataset import CaptionedLatents, Dataset, scale_to_unit_variance
from sdpipe.training.emoji.dataset import EmojiDataset
from sdpipe.training.imagefolder import ImageFolder
from sdpipe.training.job import Job
from sdpipe.training.loop import Progress, no_progress
from sdpipe.training.model import load_model, new_model, save_model
from sdpipe.training.refinement.stages import refine
from sdpipe.training.run_folder import FOLDER, init_run_dir, lora_path, remove_run_dir
from sdpipe.training.stages import Run, train_denoiser, train_text_encoder, train_vae

Log = Callable[[str], None]
"""Reports a fact in one line, such as how many images there are."""


def train(
    job: Job,
    *,
    dataset: Dataset | None = None,
    save_every: float = 60.0,
    progress: Progress = no_progress,
    log: Log = lambda line: None,
) -> Path | None:
    """Trains a model and writes it to `job.out`; returns that in the first process, else None.

    A new model passes through the stages of its recipe. A model that is fine-tuned has one stage:
    its VAE, and so the meaning of the latents, and its tokenizer stay as they are. Of a model that
    is distilled the LoRA is written and its file returned. Checkpoints are in `job.out`/training;
    the same job, started again, continues from them.

    dataset: the images in place of the job's own.
    save_every: seconds between checkpoints, at least; 0 writes one after every step.

    Raises:
        UsageError: the job cannot be trained, or another process trains in its folder.
        ModelError: the model to fine-tune cannot be loaded, or does not fit.
        NotFiniteError: a loss is NaN or infinite.
        SdpipeError: the font or a package is missing, memory or disk is full.
    """
    accelerator = make_accelerator(job.device)
    try:
        with contextlib.ExitStack() as stack:
            _in_first_process(accelerator, partial(_claim, job.out, stack))
            _train(job, accelerator, dataset, save_every, progress, log)
        accelerator.end_training()
    except SdpipeError:
        if accelerator.is_main_process:
            raise
        raise SystemExit(1) from None  # the first process reports it
    except torch.OutOfMemoryError as error:
        raise SdpipeError(
            str(accelerator.device),
            "is out of memory",
            "train with a smaller --dim, or with a smaller batch_size in a --recipe of your own",
        ) from error
    if not accelerator.is_main_process:
        return None
    return job.out if job.recipe.consistency is None else lora_path(job.out)


def _train(
    job: Job,
    accelerator: Accelerator,
    dataset: Dataset | None,
    save_every: float,
    progress: Progress,
    log: Log,
) -> None:
    recipe, model, origin = job.recipe, None, None
    if job.start is not None:
        with accelerator.main_process_first():
            model, recipe, origin = load_model(job.start, recipe, job.dim, accelerator.device)
    if dataset is None:
        if job.entries is not None:
            dataset = ImageFolder(job.entries, recipe.size, job.out / FOLDER / "images.rgb")
        else:
            assert recipe.scenes is not None
            dataset = EmojiDataset(recipe.scenes, recipe.size, recipe.seed)
    if model is None:
        model = new_model(recipe, dataset.captions(), dataset.vocabulary())
    elif model.vocabulary is not None:
        model = replace(model, vocabulary=model.vocabulary.merge(dataset.vocabulary()))
    run = Run(recipe, model, job.out / FOLDER, accelerator, save_every, progress)
    _in_first_process(accelerator, partial(_begin, job, run, dataset, origin, log))

    if recipe.consistency is not None:
        lora, settings = distill(run, dataset, recipe.consistency)
        _in_first_process(
            accelerator, partial(save_lora, lora, settings, model, lora_path(job.out))
        )
        return
    if origin is None:
        train_vae(run, dataset)
        latents = scale_to_unit_variance(model.vae, run.encode(dataset, "latents"))
        data = CaptionedLatents(dataset, latents, model.tokenizer)
        train_text_encoder(run, data)
        train_denoiser(run, data, "unet", recipe.unet)
        if recipe.joint.steps:
            train_denoiser(run, data, "joint", recipe.joint, recipe.steps_before("joint"))
        refine(run, data)
    else:
        data = CaptionedLatents(dataset, run.encode(dataset, "latents"), model.tokenizer)
        train_denoiser(run, data, "finetuning", recipe.finetuning)
    _in_first_process(accelerator, partial(save_model, model, job.out, run.folder))


def make_accelerator(device: str) -> Accelerator:
    """Where training runs: on the device asked for, or as `accelerate launch` has it.

    Raises:
        UsageError: the device is unknown, or this machine has none.
    """
    place = pick_device(device)
    if place.type == "cuda" and place.index is not None:
        torch.cuda.set_device(place)
    on_cpu = place.type == "cpu" or (device == "auto" and parse_flag_from_env("ACCELERATE_USE_CPU"))
    # The others wait while the first encodes, for a large folder longer than the usual timeout.
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))
    half = pick_dtype("auto", state.device) != torch.float32 and is_bf16_available()
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if half else "no")


def _in_first_process(accelerator: Accelerator, task: Callable[[], None]) -> None:
    """Does a task in the first process; the others wait, and end if it fails."""
    failed: list[Any] = [True]
    try:
        if accelerator.is_main_process:
            task()
        failed = [False]
    finally:
        if accelerator.num_processes > 1:
            broadcast_object_list(failed)
    if failed[0]:
        raise SystemExit(1)


def _claim(out: Path, stack: contextlib.ExitStack) -> None:
    """Claims the run's folder until the stack is closed.

    Raises:
        UsageError: another process trains there.
    """
    with contextlib.suppress(OSError):  # one that cannot be written is refused by `init_run_dir`
        if not stack.enter_context(claim(out.parent, [out.name])):
            raise UsageError(
                f"out={str(out)!r}", "is where another process trains", "wait, or choose another"
            )


def _begin(job: Job, run: Run, dataset: Dataset, origin: str | None, log: Log) -> None:
    """Makes the run's folder, reads the images, and logs what the model learns from."""
    identity = {"recipe": run.recipe.numbers(), "from": origin, "data": dataset.fingerprint()}
    is_new = init_run_dir(job.out, identity, job.recipe_path.read_text(encoding="utf-8"))
    if origin is None and not (run.folder / "vae.checkpoint").exists():
        latents = (run.folder / f"{name}.safetensors" for name in ("latents", "hard_negatives"))
        for path in (*latents, *run.folder.glob("*.checkpoint")):
            path.unlink(missing_ok=True)  # they are of another VAE
    try:
        if job.recipe.consistency is None:  # else captions are enough
            dataset.prepare(partial(run.progress, "reading the images"))
    except BaseException:
        if is_new:  # a repaired image makes other data, and so another run
            remove_run_dir(job.out)
        raise
    log(dataset.describe())
    if job.entries is not None:
        captions, length = dataset.captions(), run.model.tokenizer.model_max_length
        tokens = run.model.tokenizer(captions, verbose=False).input_ids
        if long := sum(len(ids) > length for ids in tokens):
            warn(
                f"{long} of {len(captions)} captions have more than the {length - 2} tokens that "
                "the text encoder takes; the rest of them is not learned."
            )
