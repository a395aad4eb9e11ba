"""`Pipeline`: load a model once, then draw. The way through sdpipe, from top to bottom.

Settings -> prompt -> latents -> denoise -> latents -> image

Over 300 lines, since half of them are docstrings: this is the page that users of the library read.
The code of a run is `generate`, `draw` and `run`.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from sdpipe.batches import Batch, draw_batches, encode, split_into_batches, warn_unused_embeddings
from sdpipe.canvas import Canvas, load_images, prepare
from sdpipe.components import Components, load
from sdpipe.denoise import Step
from sdpipe.errors import UsageError
from sdpipe.latents import latents_to_pil, vae_factor
from sdpipe.plan import check_seamless, plan
from sdpipe.runtime.device import pick_speed
from sdpipe.runtime.seamless import with_circular_padding
from sdpipe.runtime.speed import accelerate
from sdpipe.sampling import sample
from sdpipe.schedule import schedule_for
from sdpipe.settings import GenerateKwargs, ResolvedSettings, check_kwargs

if TYPE_CHECKING:
    from sdpipe.loading.safety_checker import SafetyChecker, SafetyResult


@dataclass(frozen=True, eq=False)
class Result:
    """What `Pipeline.generate` drew. Each list has one entry an image.

    settings: what each image alone was drawn with, every default filled in.
    numbers: the image's number in the run, from 0.
    batch_positions: the image's number in its batch, from 0, and the size of that batch.
    steps: with save_int, every step of every batch; see `steps_of`.
    safety: with safety="flag", what the safety checker says of each image.
    pipeline: what drew them; the metadata of images tells of its model and device.
    """

    images: list[Image.Image]
    settings: list[ResolvedSettings]
    numbers: list[int]
    batch_positions: list[tuple[int, int]]
    steps: list[Step] = field(default_factory=list)
    safety: list["SafetyResult"] = field(default_factory=list)
    pipeline: "Pipeline | None" = field(default=None, repr=False)

    @property
    def seeds(self) -> list[int]:
        """The seed of each image."""
        return [settings.seed for settings in self.settings]

    def steps_of(self, image: int) -> list[Step]:
        """The steps of one image, by its number from 0; their tensors have B = 1.

        The starting noise is the `input` of the first.
        """
        return [step.only(image) for step in self.steps if image in step.images]

    @property
    def records(self) -> list[dict[str, Any]]:
        """How each image was drawn, as its file tells it; `save_image` takes one.

        Raises:
            UsageError: the result does not know the pipeline that drew it.
        """
        from sdpipe.metadata.save import metadata_for

        return [metadata_for(self, k) for k in range(len(self.images))]

    def save(
        self,
        path: str | PathLike[str],
        *,
        format: str | None = None,
        with_metadata: bool = True,
        mark: bool = True,
        overwrite: bool = False,
    ) -> list[Path]:
        """Writes the images, each with all that is needed to draw it again; returns their paths.

        path: a .png, .jpg or .webp file, for several images NAME-1, NAME-2, ...; anything else is
            a folder, whose images are numbered.
        format: of the images in a folder, png, jpg or webp; None is png.
        with_metadata: write into each image how it was drawn.
        mark: write into each image that a model made it, see `io.mark`.
        overwrite: replace files that exist.

        Raises:
            UsageError: a file exists, its format is unknown, or the folder cannot be written.
            SdpipeError: a file cannot be written.
        """
        from sdpipe.metadata.save import save_result

        content = {"with_metadata": with_metadata, "mark": mark}
        return save_result(self, path, format=format, overwrite=overwrite, **content)

    def only(self, images: Sequence[int]) -> "Result":
        """Some of the images, by their numbers from 0, as a result of their own."""
        steps = [
            replace(step, images=range(place, place + 1))
            for place, k in enumerate(images)
            for step in self.steps_of(k)
        ]
        return Result(
            [self.images[k] for k in images],
            [self.settings[k] for k in images],
            [self.numbers[k] for k in images],
            [self.batch_positions[k] for k in images],
            steps,
            [self.safety[k] for k in images] if self.safety else [],
            self.pipeline,
        )

    @classmethod
    def join(cls, results: Sequence["Result"]) -> "Result":
        """Several results as one, in their order."""
        joined = cls([], [], [], [], pipeline=results[0].pipeline)
        for result in results:
            first = len(joined.images)
            joined.images.extend(result.images)
            joined.settings.extend(result.settings)
            joined.numbers.extend(result.numbers)
            joined.batch_positions.extend(result.batch_positions)
            joined.steps.extend(_renumbered(step, first) for step in result.steps)
            joined.safety.extend(result.safety)
        return joined


class Pipeline:
    """A text-to-image model, ready to draw.

    model: a built-in model ("emoji"), a folder in the diffusers layout, a single .safetensors
        file or a hub id. None is $SDPIPE_MODEL, else CompVis/stable-diffusion-v1-4.
    device: "auto" (cuda, else mps, else cpu), "cpu", "cuda", "cuda:1", "mps".
    dtype: "auto" (float16 on cuda and mps; bfloat16 on a CPU that multiplies it natively; else
        float32), "float32", "float16", "bfloat16".
    vae, text_encoder, unet, tokenizer: replace the model's own part: a loaded module, a folder
        or a hub id, for a VAE also a .safetensors file.
    prediction_type: what the U-Net predicts, "epsilon" (the noise) or "v", where the model's files
        don't say: a single file of Stable Diffusion 2.
    loras: files to add to the weights: "pencil.safetensors", or with a weight
        ("pencil.safetensors", 0.8).
    embeddings: files of textual inversions: "my-cat.safetensors", which prompts then call
        my-cat, or with another word ("my-cat.safetensors", "tom").
    speed: lay the networks out for speed; False runs them as diffusers loads them.
    low_memory: keep text encoder, U-Net and VAE in the GPU's memory only while they work. Of
        v1-4's 2.1 GB in float16 at most the 1.7 of the U-Net are there at a time.
    compile: compile the U-Net with torch.compile. v1-4's takes two CPU cores a minute once, and
        seconds in every later process, since torch keeps the code. In float32 on a CPU it takes
        a minute or two in each process, and the memory of the U-Net's weights once more.

    Raises:
        UsageError: an unknown or unavailable device, dtype or prediction; a LoRA's weight that
            is not a number; an embedding's word that no prompt can contain; low_memory without
            a GPU or with compile.
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
        mode = pick_speed(speed, compile, low_memory)
        components = load(
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
            for_speed=mode != "plain",
        )
        self._adopt(components, mode)

    @classmethod
    def from_components(
        cls, components: Components, *, speed: bool = True, compile: bool = False
    ) -> Self:
        """A pipeline of parts that are loaded already; see `load` and `Components`.

        Raises:
            UsageError: compile without speed, or with low_memory.
        """
        pipe = cls.__new__(cls)
        pipe._adopt(components, pick_speed(speed, compile, components.low_memory))
        return pipe

    def with_parts(self, **parts: Any) -> Self:
        """A pipeline that draws with other parts and shares all the rest with this one.

        parts: `unet`, `vae`, `text_encoder` or `tokenizer`. A U-Net that is no
            UNet2DConditionModel, such as a function that records what passes through, is called as
            it is.

        Raises:
            TypeError: no part has such a name.
        """
        names = ("unet", "vae", "text_encoder", "tokenizer")
        if unknown := [name for name in parts if name not in names]:
            raise TypeError(f"there is no part {unknown[0]!r}; the parts are {', '.join(names)}")
        pipe = type(self).__new__(type(self))
        pipe._adopt(replace(self.components, **parts), self.speed)
        return pipe

    def with_wrapped_unet(self, wrap: Callable[[Any], Any]) -> Self:
        """A pipeline whose loop calls `wrap(unet)` where this one's calls `unet`.

        What the wrapper hands on keeps its bits, since it stands around the U-Net as it was
        accelerated. Images without a seam are drawn without it.
        """
        pipe = copy.copy(self)
        pipe._unet, pipe._seamless = wrap(self._unet), {}
        return pipe

    def _adopt(self, components: Components, speed: str) -> None:
        self.components = components
        self.speed = speed
        self._unet = components.unet
        if isinstance(components.unet, UNet2DConditionModel):
            stays = not components.low_memory
            vae, device = components.vae, components.device
            self._unet = accelerate(components.unet, vae, speed, device, stays=stays)
        self._seamless: dict[str, Self] = {}

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        on_step: Callable[[Step], object] | None = None,
        **settings: Unpack[GenerateKwargs],
    ) -> Result:
        """Draws `n` images of a prompt, or of each prompt of a list.

            pipe.generate("red apple", g=7.5, seed=42, steps=50, dim=512, save_int=True)

        Image k of the call shows prompt k // n and has seed + k; under `variation_strength` all
        have the seed, and image k the variation_seed + k; of a list of seeds each prompt has an
        image of each. The settings are those of `Settings`,
        which gives the meaning, unit and range of each; what is left out is the model's own.
        `init_image` and `mask_image` are files or PIL images; where the mask is black, the result
        has the pixels of `init_image`. `on_step` is called with every `Step`, as for a progress
        bar. Where memory runs out a batch begins anew in halves, and a warning says so.

        Raises:
            torch.OutOfMemoryError: one image alone is too large for the device.
            UsageError: a value breaks its rule, or the model's.
            TypeError: no setting has such a name.
            ModelError: with safety="flag", the model has no safety checker, or it can't be had.
            NotFiniteError: a stage produced NaN or infinity; ModelError if its weights are so.
        """
        images, canvas = self.plan(prompt, **settings)
        return Result.join(list(self.draw(images, canvas, on_step=on_step)))

    def stream(
        self, prompt: str | Sequence[str], **settings: Unpack[GenerateKwargs]
    ) -> Iterator[Step]:
        """Draws like `generate`, with the same arguments, and yields every `Step` as it is done.

        Stopping is `break`. A batch's last step has the finished latents, for `latents_to_pil`;
        inpainting has not restored the pixels of `init_image` there. With `seamless` they are for
        a VAE `with_circular_padding`, see `sdpipe.runtime.seamless`.

        Raises:
            UsageError: as `generate`, before the first step; or safety, which looks at images.
        """
        images, canvas = self.plan(prompt, **settings)
        if images[0].safety != "off":
            raise UsageError(
                f"safety={images[0].safety!r}",
                "looks at finished images, and stream yields latents",
                "leave it out, or call generate",
            )
        return self.run(images, canvas)

    def replay(self, path: str | PathLike[str], **changes: Unpack[GenerateKwargs]) -> Result:
        """Draws an image again from its metadata, with this pipeline's model.

        A warning says what differs: the model's weights, what the image's program has and this one
        lacks. `sdpipe.metadata.replay.prepare` finds and loads the image's own model.

        path: a PNG, JPEG or WebP of sdpipe or of another program.
        changes: settings in place of the image's, as in replay("apple.png", steps=80); an image
            that it was drawn from is given as `init_image`, its mask as `mask_image`.

        Raises:
            SdpipeError: the image cannot be read, or its metadata is not enough.
            UsageError: as `generate`; or `init_image` is not the recorded one.
        """
        from sdpipe.metadata.replay import replay

        return replay(self, path, **check_kwargs(changes))

    def plan(
        self, prompt: str | Sequence[str], **settings: Unpack[GenerateKwargs]
    ) -> tuple[list[ResolvedSettings], Canvas | None]:
        """The settings of every image that `generate` would draw, and the image to begin with.

        Raises:
            UsageError, TypeError: as `generate`.
        """
        parts = self.components
        call: dict[str, Any] = check_kwargs(settings)
        init, mask = load_images(call.pop("init_image", None), call.pop("mask_image", None))
        images = plan(prompt, **parts.constraints, init_image=init, mask_image=mask, **call)
        schedule_for(images[0], parts.scheduler_config, parts.device)  # may refuse to draw them
        warn_unused_embeddings(parts, images)
        check_seamless(images[0], vae_factor(parts.vae), len(parts.unet.config.block_out_channels))
        return images, prepare(images[0], init, mask)

    def draw(
        self,
        images: Sequence[ResolvedSettings],
        canvas: Canvas | None = None,
        *,
        most: int | None = None,
        on_step: Callable[[Step], object] | None = None,
        on_failed: Callable[[int, Exception], object] | None = None,
    ) -> Iterator[Result]:
        """Draws images and yields the `Result` of each batch as soon as it is decoded.

        most: images drawn at once, at most; None is as many as are fast.
        on_failed: called with the number of an image that comes to NaN, or for which memory runs
            out, and the error; the others are drawn all the same. None raises.

        Raises:
            As `generate`.
        """
        return self.draw_batches(self.split(images, most), canvas, on_step, on_failed)

    def split(self, images: Sequence[ResolvedSettings], most: int | None = None) -> list[Batch]:
        """The batches that `draw` draws; see `split_into_batches`."""
        return split_into_batches(self.components, images, most)

    def draw_batches(
        self,
        batches: Sequence[Batch],
        canvas: Canvas | None = None,
        on_step: Callable[[Step], object] | None = None,
        on_failed: Callable[[int, Exception], object] | None = None,
    ) -> Iterator[Result]:
        """Draws like `draw` images that are in batches already."""
        is_checked = any(s.safety == "flag" for batch in batches for s in batch.settings)
        checker = self._checker if is_checked else None

        def draw(batch: Batch) -> Iterator[Result]:
            steps: list[Step] = []
            for step in self._sample(batch, canvas):
                if batch.settings[0].save_int:
                    steps.append(_renumbered(step, -batch.images.start))
                if on_step is not None:
                    on_step(step)
            drawn = self._decode(step, batch.settings[0].seamless, canvas)
            safety = [checker.check(image) for image in drawn] if checker is not None else []
            positions = [(i, len(batch)) for i in range(len(batch))]
            numbers, settings = list(batch.images), list(batch.settings)
            yield Result(drawn, settings, numbers, positions, steps, safety, self)

        return draw_batches(batches, draw, on_failed)

    def run(
        self, images: Sequence[ResolvedSettings], canvas: Canvas | None = None
    ) -> Iterator[Step]:
        """Draws images batch by batch and yields every step; the call under all others.

        images: the settings of each image, with a seed of its own. Neighbours that differ in
            nothing but prompt and seeds are drawn together.
        canvas: the image that all begin with, if any.

        Where memory runs out, a batch begins anew in halves: `Step.images` is smaller then, and
        `Step.index` 0 again.

        Raises:
            torch.OutOfMemoryError: one image alone is too large for the device.
            NotFiniteError: a stage produced NaN or infinity.
        """
        batches = split_into_batches(self.components, images)
        return draw_batches(batches, lambda batch: self._sample(batch, canvas))

    def _sample(self, batch: Batch, canvas: Canvas | None) -> Iterator[Step]:
        """Text to prompt embeddings, noise to latents."""
        pipe = self._with_seamless(batch.settings[0].seamless)
        embeds = encode(pipe.components, batch)
        with self.components.blame_weights():
            yield from sample(pipe.components, pipe._unet, batch, embeds, canvas)

    def _decode(self, step: Step, seamless: str | None, canvas: Canvas | None) -> list[Image.Image]:
        """Latents to images, one at a time: a batch would need the memory of all."""
        vae = self._with_seamless(seamless).components.vae
        with self.components.blame_weights(), self.components.on_device(vae):
            images = [latents_to_pil(vae, z)[0] for z in step.latents.split(1)]
        return images if canvas is None else [canvas.composite(image) for image in images]

    def _with_seamless(self, axes: str | None) -> Self:
        """The pipeline for images without a seam along some axes; it shares all weights."""
        if axes is None:
            return self
        if axes not in self._seamless:
            parts = self.components
            unet, vae = (with_circular_padding(part, axes) for part in (parts.unet, parts.vae))
            self._seamless[axes] = self.with_parts(unet=unet, vae=vae)
        return self._seamless[axes]

    @cached_property
    def _checker(self) -> "SafetyChecker":
        """The model's safety checker, loaded when it is first asked for."""
        return self.components.load_safety_checker()


def _renumbered(step: Step, offset: int) -> Step:
    """A step whose images have other numbers."""
    if not offset:
        return step
    return replace(step, images=range(step.images.start + offset, step.images.stop + offset))
