"""Draws an image again from its metadata.

    from sdpipe.metadata.replay import prepare

    job = prepare("apple.png")
    for result in job.draw(job.load()):
        result.save("again/")

An image of ours names its model, settings, device and number type, and the size of its batch, which
influences the last bits (see benchmarks/batch_effect.json). What the other images of the batch
show does not matter: in their places the same image is drawn.

Over 300 lines, since what to draw again is decided here in one place, for the command line, for
Python and for the page.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sdpipe.canvas import LoadedImage, Source
from sdpipe.errors import SdpipeError, UsageError, warn
from sdpipe.loading.locate import check_model, check_part
from sdpipe.metadata import resolve
from sdpipe.metadata.read import read_record
from sdpipe.metadata.record import Record, RecordError, about_image, truncate
from sdpipe.runtime.device import check_device, check_dtype, dtype_name, pick_device, pick_dtype
from sdpipe.settings import KARRAS_SCHEDULERS, Settings

if TYPE_CHECKING:
    from sdpipe.canvas import Canvas
    from sdpipe.denoise import Step
    from sdpipe.pipeline import Pipeline, Result
    from sdpipe.settings import ResolvedSettings


@dataclass(frozen=True)
class ReplayJob:
    """What to draw for an image, decided before any model is loaded.

    record: what the image says of itself.
    settings: of what is drawn; None as in any `Settings` is the model's own.
    n, index: how many images are drawn at once, and which of them is the image; with changes, all
        of them are wanted.
    model: a name for `Pipeline`; None is the default model.
    device, dtype, speed: likewise; speed is one of `device.SPEEDS`.
    changed: whether changes make it another image.
    notes: what was assumed or left out, a sentence each.
    init_image, mask_image: the images that it was drawn from.
    vae: the VAE that replaced the model's own; a name for `Pipeline`.
    prediction: what the U-Net predicts, where the person who drew the image gave it.
    loras, embeddings: the files added to the model, with their weights and words.
    """

    record: Record
    settings: Settings
    n: int
    index: int
    model: str | None
    device: str
    dtype: str
    speed: str
    changed: bool
    notes: tuple[str, ...]
    init_image: LoadedImage | None = None
    mask_image: LoadedImage | None = None
    vae: str | None = None
    prediction: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    embeddings: tuple[tuple[str, str], ...] = ()

    @property
    def indices(self) -> range:
        """Which images of the result are wanted."""
        return range(self.n) if self.changed else range(self.index, self.index + 1)

    def load(self, *, low_memory: bool = False) -> "Pipeline":
        """Loads the model; `low_memory` as for `Pipeline`.

        Raises:
            UsageError, ModelError: as `Pipeline`.
        """
        from sdpipe.pipeline import Pipeline

        return Pipeline(
            self.model,
            device=self.device,
            dtype=self.dtype,
            vae=self.vae,
            prediction_type=self.prediction,
            loras=self.loras,
            embeddings=self.embeddings,
            speed=self.speed != "plain",
            compile=self.speed == "compiled",
            low_memory=low_memory,
        )

    def compare_weights(self, pipe: "Pipeline") -> list[str]:
        """Notes on a loaded model whose weights are not the recorded ones."""
        identity = pipe.components.model.identity()
        notes = [
            f"the model's weights are not those that drew it: {name} {then[:12]} then, "
            f"{now[:12]} now."
            for name in ("sha256", "revision")
            if (then := self.record.model.get(name)) and (now := identity[name]) and then != now
        ]
        before, after = self.record.parts.get("vae"), identity["parts"].get("vae")
        if self.vae is not None and resolve.part_mark(before) != resolve.part_mark(after):
            then, now = resolve.describe_part(before), resolve.describe_part(after)
            notes.append(f"its VAE is another: {then} then, {now} now.")
        return notes

    def draw(
        self,
        pipe: "Pipeline",
        on_step: "Callable[[Step], object] | None" = None,
        *,
        save_int: bool | None = None,
    ) -> "Iterator[Result]":
        """Draws, batch after batch; `indices` says which images of the run are wanted.

        save_int: keep the steps; None is what the settings say.

        Raises:
            UsageError: the settings break a rule of the model.
            NotFiniteError: a stage produced NaN or infinity.
        """
        images, canvas = self.plan(pipe, save_int=save_int)
        return pipe.draw(images, canvas, on_step=on_step)

    def plan(
        self, pipe: "Pipeline", *, save_int: bool | None = None
    ) -> "tuple[list[ResolvedSettings], Canvas | None]":
        """The settings of every image that `draw` draws, and the image that they begin with.

        Raises:
            UsageError: the settings break a rule of the model.
        """
        values = self.settings.to_dict()
        if save_int is not None:
            values["save_int"] = save_int
        values |= {"init_image": self.init_image, "mask_image": self.mask_image}
        images, canvas = pipe.plan(values.pop("prompt"), **values)
        return (images if self.changed else images * self.n), canvas


def prepare(
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    vae: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    changes: Mapping[str, Any] | None = None,
    init_image: Source | None = None,
    mask_image: Source | None = None,
    loras: Sequence[str] = (),
    embeddings: Sequence[str] = (),
) -> ReplayJob:
    """Reads an image's metadata and decides what to draw for it.

    model, vae, device, dtype: in place of those that the image names; as for `Pipeline`.
    changes: settings by name, in place of the image's; they make it another image.
    init_image, mask_image: the images that it was drawn from.
    loras, embeddings: the files that were added to the model, in any order. Of all these, metadata
        holds only name and hash, a LoRA's weight and an embedding's word.

    Raises:
        UsageError: an unknown setting, device or dtype, a value that breaks its rule, or images and
            files other than the recorded ones.
        ModelError: the image's model may not be loaded because an image names it.
        SdpipeError: the image cannot be read, or its metadata is not enough.
    """
    if device is not None:
        check_device(device)
    if dtype is not None:
        check_dtype(dtype)
    check_model(model)
    check_part(vae, "vae")
    changes = changes or {}
    record, settings, notes, prediction = _read(path, changes)
    images = resolve.resolve_images(settings, path, init_image, mask_image)
    lora_files = resolve.resolve_files("lora", record.loras, path, loras)
    embedding_files = resolve.resolve_files("embedding", record.embeddings, path, embeddings)
    n, index = (settings.n, 0) if changes else _batch(record, settings, notes)
    type_here = dtype or resolve.resolve_dtype(record, notes)
    full_precision = type_here == "float32"
    name = model or resolve.resolve_model(record, path, full_precision, notes)
    if model is None and "safety" not in changes:
        settings = resolve.without_missing_checker(settings, name, full_precision, notes)
    vae = vae or resolve.resolve_vae(record, path, full_precision)
    if lost := {k: v for k, v in record.parts.items() if k != "vae" or vae is None}:
        parts = ", ".join(
            f"{truncate(part)[1:-1]} ({resolve.describe_part(name)})" for part, name in lost.items()
        )
        notes.append(f"parts of its model were replaced: {parts}; the model's own are used.")
    device = device or resolve.resolve_device(record, notes)
    is_slow = dtype is None and type_here == "float16" and record.device != "cpu"
    if is_slow and pick_device(device).type == "cpu":
        type_here = "auto"
        notes.append("it was drawn in float16, which takes a CPU minutes; auto picks another type.")
    is_slow = dtype is None and type_here == "bfloat16" and pick_device(device).type == "cpu"
    if is_slow and dtype_name(pick_dtype("auto", pick_device("cpu"))) != type_here:
        type_here = "auto"
        notes.append(
            "it was drawn in bfloat16, which this CPU only imitates; auto picks another type, and "
            "--dtype bfloat16 draws in it."
        )
    return ReplayJob(
        record,
        settings,
        n,
        index,
        name,
        device,
        type_here,
        resolve.resolve_speed(record, notes),
        bool(changes),
        tuple(notes),
        *images,
        vae=vae,
        prediction=prediction,
        loras=tuple((file, entry["weight"]) for file, entry in lora_files),
        embeddings=tuple((file, entry["word"]) for file, entry in embedding_files),
    )


def replay(
    pipe: "Pipeline",
    path: str | os.PathLike[str],
    *,
    init_image: Source | None = None,
    mask_image: Source | None = None,
    **changes: Any,
) -> "Result":
    """Draws an image again with a pipeline that is loaded; see `Pipeline.replay`."""
    job = prepare_for(pipe, path, init_image=init_image, mask_image=mask_image, **changes)
    for note in job.notes:
        warn(f"{os.path.basename(path)}: {note}")
    results = list(job.draw(pipe))
    return results[0].join(results).only(job.indices)


def prepare_for(
    pipe: "Pipeline",
    path: str | os.PathLike[str],
    *,
    init_image: Source | None = None,
    mask_image: Source | None = None,
    **changes: Any,
) -> ReplayJob:
    """What to draw for an image with a pipeline that is loaded, whichever it names.

    Raises:
        As `prepare`.
    """
    record, settings, notes, _ = _read(path, changes)
    images = resolve.resolve_images(settings, path, init_image, mask_image)
    n, index = (settings.n, 0) if changes else _batch(record, settings, notes)
    machine = (str(pipe.components.device), dtype_name(pipe.components.dtype), pipe.speed)
    job = ReplayJob(record, settings, n, index, None, *machine, bool(changes), (), *images)
    now = pipe.components.model.identity()
    for kind, recorded in (("loras", record.loras), ("embeddings", record.embeddings)):
        if [dict(each) for each in recorded] != now[kind]:
            notes.append(f"its {kind} are not those of this pipeline; the pipeline's are used.")
    return replace(job, notes=(*notes, *job.compare_weights(pipe)))


def _read(
    path: str | os.PathLike[str], changes: Mapping[str, Any]
) -> tuple[Record, Settings, list[str], str | None]:
    """What an image says, its settings with changes, notes, and what its U-Net predicts."""
    record = read_record(path)
    if record.sweep is not None:
        raise SdpipeError(
            f"{path}",
            "is the grid of a sweep, whose cells are images of their own",
            f"sdpipe info {path} shows the command that draws them all",
        )
    if not record.values:
        raise SdpipeError(
            f"{path}",
            f"was drawn by {record.source}, whose settings are not read here",
            f"sdpipe info {path} shows what the image says of itself",
        )
    try:
        settings, notes = _settings(record, changes)
        resolve.check_size(record, settings, changes)
        prediction = resolve.resolve_prediction(record)
    except RecordError as error:
        raise about_image(path, "cannot be drawn again", error) from error
    said = [note for note in record.notes if "rng" not in changes or "--set rng=" not in note]
    return record, settings, [*said, *notes], prediction


def _settings(record: Record, changes: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """The settings of what is drawn, and notes on what the changes exclude."""
    notes: list[str] = []
    values = dict(record.values)
    if "dim" in changes:
        values.pop("width", None)
        values.pop("height", None)
    if (scheduler := changes.get("scheduler")) not in (None, values.get("scheduler")):
        values.pop("lms_order", None)
        if values.get("karras") is True and scheduler not in KARRAS_SCHEDULERS:
            del values["karras"]
            notes.append(f"its Karras noise levels are left out: {truncate(scheduler)} has none.")
    try:
        settings = Settings.from_dict({**values, **changes})
    except UsageError:
        record.settings()  # where these break a rule too, the changes are not to blame
        raise
    if settings.n != 1 and "n" not in changes:
        raise RecordError(f"n={settings.n}", "is in the settings of a single image")
    if settings.seed is None and "seed" not in changes:
        raise RecordError("its metadata", "has no seed", "give one: --set seed=42")
    return settings, notes


def _batch(record: Record, settings: Settings, notes: list[str]) -> tuple[int, int]:
    """How many images are drawn at once, and the image's place among them."""
    n, index = record.n, record.index
    if settings.batch_invariant or n == 1:
        return 1, 0
    width, height = settings.output_size
    pixels = n * (width or 512) * (height or 512)
    if pixels > resolve.most_pixels(record):
        notes.append(f"it was drawn in a batch of {n}; drawn alone its last bits may differ.")
        return 1, 0
    return n, index
