"""Drawing a picture again from what it carries, and saying whether it came out the same.

    from sdpipe.metadata.replay import prepare

    job = prepare("apple.png")
    result = job.draw(job.load())
    image = result.images[job.index]

A picture of ours names its model, settings, device and number type, and the shape of the batch it
was drawn in, for that changes the last bits (see benchmarks/batch_effect.json). What its
neighbours showed changes nothing: in their places the same prompt is drawn from other seeds.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdpipe.canvas import LoadedImage, Source
from sdpipe.errors import SdpipeError, UsageError
from sdpipe.loading.locate import check_model, check_part
from sdpipe.metadata import resolve as at_hand
from sdpipe.metadata.info import plain, sweep_command
from sdpipe.metadata.read import read_record
from sdpipe.metadata.record import Record, RecordError, brief
from sdpipe.runtime.device import check_device, check_dtype, pick_device
from sdpipe.settings import KARRAS_SCHEDULERS, MAX_SEED, Settings

if TYPE_CHECKING:
    from sdpipe.denoise import Step
    from sdpipe.pipeline import Pipeline, Result

MAX_PIXELS = 2**24
"""Drawn at once because a picture says so: 64 of 512 x 512, or one of 4096 x 4096."""


@dataclass(frozen=True)
class Job:
    """What is to be drawn in place of a picture, decided before any model is loaded.

    record: what the picture tells.
    settings: of what is drawn; None as in any `Settings` is the model's own.
    n, index: what is drawn at once, and which of it is wanted; with changes, all of it is.
    model: a name for `Pipeline`; None is the default model.
    device, dtype, speed: likewise; speed is one of `device.SPEEDS`.
    changed: it is not the picture that is drawn, but a new one.
    init_image, mask_image: the pictures that it was drawn from, where it was.
    vae: in place of the model's own, where it was; a name for `Pipeline`.
    prediction: what the U-Net predicts, where the person who drew it said so.
    loras, embeddings: the files that were added to the model, with their weights and words.
    remarks: what was assumed or left out, a sentence each.
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
    remarks: tuple[str, ...]
    init_image: LoadedImage | None = None
    mask_image: LoadedImage | None = None
    vae: str | None = None
    prediction: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    embeddings: tuple[tuple[str, str], ...] = ()

    @property
    def wanted(self) -> range:
        """The numbers of the wanted pictures in the result."""
        return range(self.n) if self.changed else range(self.index, self.index + 1)

    def load(self, *, low_memory: bool = False) -> "Pipeline":
        """Loads the model; `low_memory` as for `Pipeline`.

        Raises:
            UsageError, ModelError: as `Pipeline`.
        """
        from sdpipe import Pipeline

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

    def check(self, pipe: "Pipeline") -> list[str]:
        """What there is to say of a loaded model: where its weights are others than recorded."""
        model, now = self.record.model, pipe.components.model.identity()
        remarks = [
            f"the model's weights are others than those that drew it: {name} {then[:12]} then, "
            f"{str(now[name])[:12]} now."
            for name in ("sha256", "revision")
            if (then := model.get(name)) and now[name] and then != now[name]
        ]
        before, after = self.record.parts.get("vae"), now["parts"].get("vae")
        if self.vae is not None and _told_apart(before) != _told_apart(after):
            remarks.append(f"its VAE is another: {_short(before)} then, {_short(after)} now.")
        return remarks

    def draw(
        self,
        pipe: "Pipeline",
        on_step: "Callable[[Step], object] | None" = None,
        *,
        save_int: bool | None = None,
    ) -> "Result":
        """Draws; `wanted` says which of the result's pictures count.

        save_int: keep the steps; None is what the settings say.

        Raises:
            UsageError: the settings break a rule of the model.
            NotFiniteError: a stage produced NaN or infinity.
        """
        values = self.settings.to_dict()
        if save_int is not None:
            values["save_int"] = save_int
        if not self.changed:
            start = "variation_seed" if self.settings.is_variation else "seed"
            values[start] -= self.index
            values["n"] = self.n
        values |= {"init_image": self.init_image, "mask_image": self.mask_image}
        return pipe.generate(values.pop("prompt"), on_step=on_step, **values)


def prepare(
    picture: str | os.PathLike[str],
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
) -> Job:
    """Reads a picture and decides what is to be drawn for it.

    model, vae, device, dtype: in place of those that the picture names; as for `Pipeline`.
    changes: settings by name, in place of the picture's; the result is a new picture.
    init_image, mask_image: the pictures that it was drawn from.
    loras, embeddings: the files that were added to the model, in any order. Of all these the
        picture tells no more than name and hash, a LoRA's weight, and an embedding's word.

    Raises:
        UsageError: an unknown setting, device or dtype, a value that breaks its rule, or not the
            pictures and files that it was drawn from.
        ModelError: the picture's model is none that may be loaded on its word.
        SdpipeError: the picture can't be read, or does not tell enough.
    """
    if device is not None:
        check_device(device)
    if dtype is not None:
        check_dtype(dtype)
    check_model(model)
    check_part(vae, "vae")
    record = read_record(picture)
    if record.sweep is not None:
        raise SdpipeError(
            f"{picture} is the grid of a sweep, whose cells are pictures of their own. This draws "
            f"them all: {plain(sweep_command(record))}"
        )
    try:
        settings, remarks = _settings(record, changes or {})
        _check_size(settings, changes or {})
    except RecordError as error:
        raise SdpipeError(f"{picture} cannot be drawn again: {error}") from error
    pictures = at_hand.pictures(settings, picture, init_image, mask_image)
    lora_files = at_hand.files("lora", record.loras, picture, loras)
    embedding_files = at_hand.files("embedding", record.embeddings, picture, embeddings)
    remarks = [*record.remarks, *remarks]
    n, index = (settings.n, 0) if changes else _batch(record, settings, remarks)
    type_here = dtype or at_hand.dtype(record, remarks)
    full = type_here == "float32"
    name = model or at_hand.model(record, picture, full, remarks)
    if model is None and "safety" not in (changes or {}):
        settings = at_hand.without_fetching(settings, name, full, remarks)
    vae = vae or at_hand.vae(record, picture, full)
    if others := {k: v for k, v in record.parts.items() if k != "vae" or vae is None}:
        told = ", ".join(f"{brief(part)[1:-1]} ({_short(name)})" for part, name in others.items())
        remarks.append(f"in its model other parts stood in: {told}; the model's own draw.")
    device = device or at_hand.device(record, remarks)
    slow = dtype is None and type_here == "float16" and record.device != "cpu"
    if slow and pick_device(device).type == "cpu":
        type_here = "auto"
        remarks.append("it was drawn in float16, in which a CPU takes minutes; auto picks another.")
    return Job(
        record,
        settings,
        n,
        index,
        name,
        device,
        type_here,
        at_hand.speed(record, remarks),
        bool(changes),
        tuple(remarks),
        *pictures,
        vae=vae,
        prediction=at_hand.prediction(record),
        loras=tuple((file, told["weight"]) for file, told in lora_files),
        embeddings=tuple((file, told["word"]) for file, told in embedding_files),
    )


def _settings(record: Record, changes: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """The settings of what is drawn, and remarks on what had to give way to the changes."""
    remarks: list[str] = []
    values = dict(record.values)
    if "dim" in changes:
        values.pop("width", None)
        values.pop("height", None)
    if (scheduler := changes.get("scheduler")) not in (None, values.get("scheduler")):
        values.pop("lms_order", None)
        if values.get("karras") is True and scheduler not in KARRAS_SCHEDULERS:
            del values["karras"]
            remarks.append(f"its Karras noise levels are left out: {brief(scheduler)} has none.")
    try:
        settings = Settings.from_dict({**values, **changes})
    except UsageError:
        record.settings()  # where these break a rule too, the changes are not to blame
        raise
    if settings.n != 1 and "n" not in changes:
        raise RecordError(f"n={settings.n} in the settings of a single picture.")
    if settings.seed is None and "seed" not in changes:
        raise RecordError("it tells no seed. Give one: --set seed=42.")
    return settings, remarks


def _check_size(settings: Settings, changes: Mapping[str, Any]) -> None:
    """A large picture is drawn on a person's word, and not on that of a picture."""
    (width, height), own = settings.output_size, (settings.width, settings.height)
    if width * height > MAX_PIXELS and not {"width", "height", "dim", "hires_scale"} & set(changes):
        raise RecordError(
            f"it wants {width} x {height} pixels, and on a picture's word up to {MAX_PIXELS} are "
            f"drawn. On yours they are: --set width={own[0]} --set height={own[1]}."
        )


def _batch(record: Record, settings: Settings, remarks: list[str]) -> tuple[int, int]:
    """How many are drawn at once, and the picture's place among them."""
    n, index = record.n, record.index
    if settings.batch_invariant or n == 1:
        return 1, 0
    width, height = settings.output_size
    pixels = n * (width or 512) * (height or 512)
    if pixels > MAX_PIXELS or not _fits(settings, n, index):
        remarks.append(
            f"it was one of {n} that were drawn at once; drawn alone it may differ in last bits."
        )
        return 1, 0
    return n, index


def _fits(settings: Settings, n: int, index: int) -> bool:
    """Whether a batch of n can be drawn whose image number `index` has the seed of `settings`."""
    seed = settings.variation_seed if settings.is_variation else settings.seed
    return seed is not None and 0 <= seed - index <= MAX_SEED - n + 1


def _told_apart(part: str | None) -> str:
    """The hash or the commit of a part that was swapped."""
    return (part or "").rpartition("@")[2]


def _short(part: str | None) -> str:
    """A part that was swapped, in a few words; of its hash, the beginning."""
    name, at, mark = (part or "the model's own").partition("@")
    start = 19 if mark.startswith("sha256:") else 12
    return brief(name) + (f" @{mark[:start]}" if at else "")
