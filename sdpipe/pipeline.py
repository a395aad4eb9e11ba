"""`Pipeline`: load a model once, then draw. The way through sdpipe, from top to bottom.

Settings -> prompt -> latents -> denoise -> latents -> picture
"""

import copy
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from os import PathLike
from typing import TYPE_CHECKING, Any, Unpack

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sdpipe.canvas import Canvas, lay, take
from sdpipe.components import load
from sdpipe.denoise import Step
from sdpipe.errors import SdpipeWarning, UsageError
from sdpipe.latents import latents_to_pil, vae_factor
from sdpipe.plan import Asked, check_names, check_seamless, plan
from sdpipe.prompt.chunks import chunk_count
from sdpipe.prompt.encode import Conditioning, condition, tell_late
from sdpipe.prompt.vocabulary import warn_unknown_words
from sdpipe.runtime.device import pick_speed
from sdpipe.runtime.seamless import with_circular_padding
from sdpipe.runtime.speed import accelerate
from sdpipe.sampling import Passes, seeds, taken
from sdpipe.settings import MAX_IMAGES, ResolvedSettings

if TYPE_CHECKING:
    from sdpipe.loading.safety_checker import SafetyChecker, SafetyResult

BATCH_PIXELS = 2**22
"""A CPU draws no faster with more at once: 16 pictures of 512 x 512, or 256 of 128 x 128."""


@dataclass(frozen=True, eq=False)
class Result:
    """What `Pipeline.generate` drew. Each list has one entry for every picture.

    settings: what each picture alone was drawn with, every default filled in.
    places: its number in its batch, from 0, and how many that has. Neighbours whose prompts have as
        many chunks are a batch.
    steps: with save_int, the steps of the whole call; their tensors hold all pictures.
    noise: with save_int, the latents that the first step began with, (B, C, h, w).
    hires_noise: with save_int and hires, those that the second pass began with.
    safety: with safety="flag", what the safety checker says of each picture.
    """

    images: list[Image.Image]
    seeds: list[int]
    settings: list[ResolvedSettings]
    places: list[tuple[int, int]]
    steps: list[Step] = field(default_factory=list)
    noise: Tensor | None = None
    hires_noise: Tensor | None = None
    safety: list["SafetyResult"] = field(default_factory=list)


class Pipeline:
    """A text-to-image model, ready to draw.

    model: a built-in model ("emoji"), a folder in the diffusers layout, a single .safetensors
        file or a hub id. None is $SDPIPE_MODEL, else CompVis/stable-diffusion-v1-4; where that
        can't be had the built-in model draws, and a warning says so.
    device: "auto" (cuda, else mps, else cpu), "cpu", "cuda", "cuda:1", "mps".
    dtype: "auto" (float16 on cuda and mps; on a CPU bfloat16 where it multiplies it natively,
        else float32), "float32", "float16", "bfloat16".
    vae, text_encoder, unet, tokenizer: take the place of the model's own; each a loaded module, a
        folder or a hub id, a VAE also a .safetensors file.
    prediction_type: what the U-Net predicts, "epsilon" (the noise) or "v", where the model does not
        tell: a single file of Stable Diffusion 2.
    loras: files that are added to the weights: "pencil.safetensors", or with a weight
        ("pencil.safetensors", 0.8).
    embeddings: files of textual inversions: "my-cat.safetensors", which prompts then call my-cat,
        or with another word ("my-cat.safetensors", "tom").
    speed: lay the networks out for speed; False runs them as diffusers loads them. See `speed`.
    low_memory: keep text encoder, U-Net and VAE out of the GPU's memory but while they work. Of
        v1-4's 2.1 GB in float16 at most the 1.7 of the U-Net are there then.
    compile: compile the U-Net too, with torch.compile: v1-4's takes two CPU cores a minute once,
        and seconds in every other process, for torch keeps the code. In float32 on a CPU a minute
        or two in each, and the memory of its weights once more, which are laid out for it.

    Raises:
        UsageError: an unknown or unavailable device, dtype or prediction, a LoRA's weight is no
            number, an embedding's word is none, or low_memory and no GPU or compile.
        ModelError: the model cannot be found, fetched or read, or its parts do not fit.
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        vae: AutoencoderKL | str | PathLike[str] | None = None,
        text_encoder: CLIPTextModel | str | PathLike[str] | None = None,
        unet: UNet2DConditionModel | str | PathLike[str] | None = None,
        tokenizer: CLIPTokenizer | str | PathLike[str] | None = None,
        prediction_type: str | None = None,
        loras: Sequence[str | PathLike[str] | tuple[str | PathLike[str], float]] = (),
        embeddings: Sequence[str | PathLike[str] | tuple[str | PathLike[str], str]] = (),
        speed: bool = True,
        compile: bool = False,
        low_memory: bool = False,
    ) -> None:
        self.speed = pick_speed(speed, compile, low_memory)
        self.components = load(
            model,
            device=device,
            dtype=dtype,
            vae=vae,
            text_encoder=text_encoder,
            unet=unet,
            tokenizer=tokenizer,
            prediction_type=prediction_type,
            loras=loras,
            embeddings=embeddings,
            low_memory=low_memory,
            for_speed=self.speed != "plain",
        )
        self._faster = self._make_faster()

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        on_step: Callable[[Step], object] | None = None,
        **settings: Unpack[Asked],
    ) -> Result:
        """Draws `n` pictures of a prompt, or of each prompt of a list.

            pipe.generate("red apple", g=7.5, seed=42, steps=50, dim=512, save_int=True)

        Picture k of the call shows prompt k // n and has seed + k; with
        `variation_strength` all have the seed, and image k goes over to the noise of
        variation_seed + k. The settings are those of `Settings`, which tells the meaning, unit and
        range of each; what is left out is the model's own. `init_image` and `mask_image` are files
        or PIL images; where the mask is black, the result has the pixels of `init_image`.
        `on_step` is called with every `Step` as soon as it is done, as for a progress bar.
        Where memory runs out the pictures are begun anew in smaller batches, and a warning says so.

        Raises:
            torch.OutOfMemoryError: one picture alone is too large for the device.
            UsageError: a value breaks its rule, or the model's.
            TypeError: no setting has such a name.
            ModelError: with safety="flag", the model has no safety checker, or it can't be had.
            NotFiniteError: a stage produced NaN or infinity.
        """
        run, canvas = self._plan(prompt, settings)
        checker = self._checker if run[0].safety == "flag" else None
        texts = self._embed(run)
        while True:
            try:
                return self._draw(run, texts, canvas, checker, on_step)
            except torch.OutOfMemoryError:
                if max(map(len, texts)) == 1:
                    raise
            texts = smaller(texts)

    def _draw(
        self,
        run: list[ResolvedSettings],
        texts: list[Conditioning],
        canvas: Canvas | None,
        checker: "SafetyChecker | None",
        on_step: Callable[[Step], object] | None,
    ) -> Result:
        pipe = self._wrapped(run[0].seamless)
        passes = pipe._passes(run, texts, canvas)
        began: list[Tensor | None] = []
        kept = []
        for x_t, step in passes.steps():
            if run[0].save_int:
                if len(began) == step.hires:  # the first step of a pass
                    began.append(x_t)
                kept.append(step)
            if on_step is not None:
                on_step(step)
        x_t = step.latents
        passes.check(x_t)
        # One at a time: a batch would need the memory of all, and could change the last bits.
        vae = pipe.components.vae
        with pipe.components.on_device(vae):
            images = [latents_to_pil(vae, z)[0] for z in x_t.split(1)]
        if canvas is not None:
            images = [canvas.keep(image) for image in images]
        places = [(i, len(text)) for text in texts for i in range(len(text))]
        noise, hires_noise = [*began, None, None][:2]
        marks = [] if checker is None else [checker.check(image) for image in images]
        return Result(images, seeds(run), run, places, kept, noise, hires_noise, marks)

    def stream(self, prompt: str | Sequence[str], **settings: Unpack[Asked]) -> Iterator[Step]:
        """Draws like `generate`, with the same arguments, and yields every `Step` as it is done.

        Stopping is `break`. The last step's `latents` are the picture, for `latents_to_pil`; what
        a mask keeps has gone through the VAE there, and is not the pixels of `init_image`. With the
        setting `seamless` they are for a VAE with circular padding as well, see
        `sdpipe.runtime.seamless`.

        Raises:
            UsageError: as `generate`, before the first step; or safety, which looks at pictures.
        """
        run, canvas = self._plan(prompt, settings)
        if run[0].safety != "off":
            raise UsageError(
                "safety looks at finished pictures, and stream yields latents; leave it out, or "
                "take generate."
            )
        return self._wrapped(run[0].seamless)._streamed(run, self._embed(run), canvas)

    def _streamed(
        self, run: list[ResolvedSettings], texts: list[Conditioning], canvas: Canvas | None
    ) -> Iterator[Step]:
        """The steps of a run, in smaller batches where memory is out at the first of them."""
        step = None
        while step is None:
            try:
                for _, step in self._passes(run, texts, canvas).steps():
                    yield step
            except torch.OutOfMemoryError:
                if step is not None or max(map(len, texts)) == 1:
                    raise
                texts = smaller(texts)

    @cached_property
    def _checker(self) -> "SafetyChecker":
        """The model's safety checker, loaded when it is first asked for."""
        return self.components.load_safety_checker()

    def _plan(
        self, prompt: str | Sequence[str], asked: Asked
    ) -> tuple[list[ResolvedSettings], Canvas | None]:
        """The settings of every picture of a call, and the picture that it begins with, if any."""
        parts = self.components
        settings: dict[str, Any] = check_names(asked)
        init, mask = take(settings.pop("init_image", None), settings.pop("mask_image", None))
        run = plan(prompt, **parts.constraints, init_image=init, mask_image=mask, **settings)
        check_seamless(run[0], vae_factor(parts.vae), len(parts.unet.config.block_out_channels))
        return run, lay(run[0], init, mask)

    def _make_faster(self) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
        """The U-Net, laid out for speed, and what the loop is to call in its place."""
        parts = self.components
        unet = parts.unet
        stays = not parts.low_memory
        return unet, accelerate(unet, parts.vae, self.speed, parts.device, stays=stays)

    def _passes(
        self, run: list[ResolvedSettings], texts: list[Conditioning], canvas: Canvas | None
    ) -> Passes:
        return Passes(self.components, self._unet(), run, texts, canvas)

    def _unet(self) -> UNet2DConditionModel:
        """What the loop calls; a U-Net that took the place of the model's is called as it is."""
        own, faster = self._faster
        return faster if self.components.unet is own else self.components.unet

    def _wrapped(self, axes: str | None) -> "Pipeline":
        """A pipeline for pictures without a seam; it shares all weights with this one."""
        if axes is None:
            return self
        twin, parts = copy.copy(self), self.components
        unet, vae = (with_circular_padding(part, axes) for part in (parts.unet, parts.vae))
        twin.components = replace(parts, unet=unet, vae=vae)
        twin._faster = twin._make_faster()
        return twin

    def _embed(self, run: list[ResolvedSettings]) -> list[Conditioning]:
        """The prompts as the U-Net listens to them, batch by batch.

        A batch are neighbours whose texts have as many chunks, so that what one picture shows does
        not depend on the length of another's prompt; with `batch_invariant` it is one picture.
        """
        tokenizer, encoder = self.components.tokenizer, self.components.text_encoder
        first, steps = run[0], taken(run[0], run[0].strength)
        texts = dict.fromkeys(text for s in run for text in (s.prompt, s.negative_prompt))
        tell_late(texts, steps, stacklevel=4)
        if (vocabulary := self.components.vocabulary) is not None:
            name = self.components.model.name
            names_command = f"sdpipe names --model {shlex.quote(name)}"
            added_tokens = tokenizer.added_tokens_encoder
            warn_unknown_words(vocabulary, texts, name, names_command, added_tokens, stacklevel=4)
        count = {text: chunk_count(tokenizer, text, steps) for text in texts}
        batches = []
        for _, group in groupby(run, lambda s: max(count[s.prompt], count[s.negative_prompt])):
            batch = list(group)
            with self.components.on_device(encoder):
                text = condition(
                    tokenizer,
                    encoder,
                    [s.prompt for s in batch],
                    [s.negative_prompt for s in batch],
                    steps=steps,
                    clip_skip=first.clip_skip,
                )
            batches += text.split(1 if first.batch_invariant else self._at_once(first))
        return batches

    def _at_once(self, settings: ResolvedSettings) -> int:
        """How many pictures a batch holds at most. A GPU tries them all, see `smaller`."""
        width, height = settings.output_size
        on_gpu = self.components.device.type == "cuda"
        return MAX_IMAGES if on_gpu else max(BATCH_PIXELS // (width * height), 1)


def smaller(texts: list[Conditioning]) -> list[Conditioning]:
    """The batches of a run in halves, for a device whose memory was too small for them."""
    largest = max(map(len, texts))
    most = (largest + 1) // 2
    warnings.warn(
        f"out of memory for {largest} pictures at once; they are drawn {most} at a time.",
        SdpipeWarning,
        stacklevel=4,
    )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [part for text in texts for part in text.split(most)]
