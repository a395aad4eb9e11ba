"""Drawing a picture again from what it carries, and saying whether it came out the same.

    from sdpipe.replay import prepare

    job = prepare("apple.png")
    result = job.draw(job.load())
    image = result.images[job.index]

A picture of ours names its model, settings, device and number type, and the shape of the batch it
was drawn in, for that changes the last bits (see benchmarks/batch_effect.json). What its
neighbours showed changes nothing: in their places the same prompt is drawn from other seeds.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdpipe.canvas import Picture, Source, take
from sdpipe.device import DTYPES, SPEEDS, check_device, check_dtype, pick_device
from sdpipe.errors import ModelError, SdpipeError, UsageError
from sdpipe.guidance import bounds, scale
from sdpipe.info import plain, sweep_command
from sdpipe.init import sides
from sdpipe.loading.hub import is_hub_id
from sdpipe.loading.locate import (
    BUILT_IN,
    check_model,
    check_part,
    is_cached,
    is_checker_cached,
    is_part_cached,
)
from sdpipe.loading.single_file import check_prediction
from sdpipe.loading.weight_files import find_file, sha256
from sdpipe.record import Record, RecordError, brief, read_record
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
    init, mask: the pictures that it was drawn from, where it was.
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
    init: Picture | None = None
    mask: Picture | None = None
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
            prediction=self.prediction,
            loras=self.loras,
            embeddings=self.embeddings,
            speed=self.speed != "plain",
            compile=self.speed == "compiled",
            low_memory=low_memory,
        )

    def check(self, pipe: "Pipeline") -> list[str]:
        """What there is to say of a loaded model: where its weights are others than recorded."""
        model, now = self.record.model, pipe.components.identity()
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
            start = _counted(self.settings, self.n, self.index) or "seed"
            values[start] -= self.index
            values["n" if start == "seed" else "vary"] = self.n
        values |= {"init": self.init, "mask": self.mask}
        return pipe.generate(values.pop("prompt"), on_step=on_step, **values)


def prepare(
    picture: str | os.PathLike[str],
    *,
    model: str | None = None,
    vae: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    changes: Mapping[str, Any] | None = None,
    init: Source | None = None,
    mask: Source | None = None,
    loras: Sequence[str] = (),
    embeddings: Sequence[str] = (),
) -> Job:
    """Reads a picture and decides what is to be drawn for it.

    model, vae, device, dtype: in place of those that the picture names; as for `Pipeline`.
    changes: settings by name, in place of the picture's; the result is a new picture.
    init, mask: the pictures that it was drawn from.
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
    pictures = _pictures(settings, picture, init, mask)
    files = [
        _files(kind, known, picture, given)
        for kind, known, given in (
            ("lora", record.loras, loras),
            ("embedding", record.embeddings, embeddings),
        )
    ]
    remarks = [*record.remarks, *remarks]
    n, index = (settings.vary or settings.n, 0) if changes else _batch(record, settings, remarks)
    type_here = dtype or _dtype(record, remarks)
    name = model or _model(record, picture, type_here == "float32", remarks)
    if model is None and "safety" not in (changes or {}):
        settings = _without_fetching(settings, name, type_here == "float32", remarks)
    vae = vae or _vae(record, picture, type_here == "float32")
    if others := {k: v for k, v in record.parts.items() if k != "vae" or vae is None}:
        told = ", ".join(f"{brief(part)[1:-1]} ({_short(name)})" for part, name in others.items())
        remarks.append(f"in its model other parts stood in: {told}; the model's own draw.")
    device = device or _device(record, remarks)
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
        _speed(record, remarks),
        bool(changes),
        tuple(remarks),
        *pictures,
        vae=vae,
        prediction=_prediction(record),
        loras=tuple((file, told["weight"]) for file, told in files[0]),
        embeddings=tuple((file, told["word"]) for file, told in files[1]),
    )


def parse_changes(pairs: Iterable[str]) -> dict[str, Any]:
    """Settings as a command line gives them, "steps=80"; `Settings` checks the values.

    Raises:
        UsageError: a pair without "=", an unknown name, or something that is no text.
    """
    known = [*(f.name for f in dataclasses.fields(Settings)), "dim"]
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair!r} has no value; give NAME=VALUE, as in steps=80.")
        if name not in known:
            raise UsageError(f"unknown setting {name!r}; the known are {', '.join(known)}.")
        if name in ("init", "mask"):
            raise UsageError(
                f"--set {name} cannot make another picture of it; give the one that it was drawn "
                f"from as --{name}, or begin with your own: sdpipe generate --{name} FILE."
            )
        changes[name] = _converted(name, text)
    return changes


def _converted(name: str, text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is not UTF-8 text: {text!r}.") from error
    if name in ("prompt", "negative_prompt"):
        return text
    if name in ("karras", "exact", "save_int"):
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
            text.lower(), text
        )
    if name in ("g", "interval", "outpaint") and text:
        return {"g": scale, "interval": bounds, "outpaint": sides}[name](text)
    if name == "safety":
        return text
    if name in ("scheduler", "fit", "seamless") or not text:
        return text or None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


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


def _pictures(
    settings: Settings,
    picture: str | os.PathLike[str],
    init: Source | None,
    mask: Source | None,
) -> tuple[Picture | None, Picture | None]:
    """The pictures that it was drawn from; a person hands them over, and they are the very same."""
    given = {"init": init, "mask": mask}
    known = {"init": settings.init, "mask": settings.mask}
    for name, recorded in known.items():
        if recorded is None and given[name] is not None:
            raise UsageError(f"{picture} was drawn without {name}; leave --{name} out.")
        if recorded is not None and given[name] is None:
            raise UsageError(
                f"{picture} was drawn from the picture {brief(recorded.name)}, which it does not "
                f"hold; give that one: --{name} FILE."
            )
    taken = take(init, mask)
    for found, (name, recorded) in zip(taken, known.items(), strict=True):
        if recorded is not None and found is not None and found.sha256 != recorded.sha256:
            raise UsageError(
                f"--{name} is not the picture that {picture} was drawn from, "
                f"{brief(recorded.name)}: the SHA-256 of its pixels is {found.sha256[:12]}..., and "
                f"not {recorded.sha256[:12]}...; give that one."
            )
    return taken


def _files(
    kind: str,
    recorded: Iterable[Mapping[str, Any]],
    picture: str | os.PathLike[str],
    given: Iterable[str],
) -> list[tuple[str, Mapping[str, Any]]]:
    """The files that were added to its model; a person hands them over, and they are the same."""
    by_hash = {sha256(find_file(file, f"{kind}={file!r}")): file for file in given}
    found = []
    for told in recorded:
        if told["sha256"] not in by_hash:
            others = [brief(file) for file in by_hash.values()]
            raise UsageError(
                f"{picture} was drawn with the {kind} {brief(told['name'])}, which it does not "
                f"hold; give that file, whose SHA-256 is {told['sha256'][:12]}...: --{kind} FILE"
                + (f" ({', '.join(others)} is another)." if others else ".")
            )
        found.append((by_hash[told["sha256"]], told))
    for file in set(by_hash.values()) - {file for file, _ in found}:
        raise UsageError(f"{picture} was drawn without {brief(file)}; leave --{kind} {file} out.")
    return found


def _check_size(settings: Settings, changes: Mapping[str, Any]) -> None:
    """A large picture is drawn on a person's word, and not on that of a picture."""
    (width, height), own = settings.finished, (settings.width, settings.height)
    if width * height > MAX_PIXELS and not {"width", "height", "dim", "hires"} & set(changes):
        raise RecordError(
            f"it wants {width} x {height} pixels, and on a picture's word up to {MAX_PIXELS} are "
            f"drawn. On yours they are: --set width={own[0]} --set height={own[1]}."
        )


def _batch(record: Record, settings: Settings, remarks: list[str]) -> tuple[int, int]:
    """How many are drawn at once, and the picture's place among them."""
    n, index = record.n, record.index
    if settings.exact or n == 1:
        return 1, 0
    width, height = settings.finished
    pixels = n * (width or 512) * (height or 512)
    if pixels > MAX_PIXELS or _counted(settings, n, index) is None:
        remarks.append(
            f"it was one of {n} that were drawn at once; drawn alone it may differ in last bits."
        )
        return 1, 0
    return n, index


def _counted(settings: Settings, n: int, index: int) -> str | None:
    """Which seed can go up by one through the batch, and be the picture's own in its place."""
    for name in ("seed", "variation_seed"):
        seed = getattr(settings, name)
        if seed is not None and 0 <= seed - index <= MAX_SEED - n + 1:
            return name
    return None


def _model(
    record: Record, picture: str | os.PathLike[str], full: bool, remarks: list[str]
) -> str | None:
    """The model to load on the word of a picture: a built-in one, or one of the hub that is here.

    Nothing is fetched, and no path opened, because a picture says so.
    """
    name, revision = record.model.get("name", ""), record.model.get("revision", "")
    program = record.versions.get("program", "")
    if name in BUILT_IN and (record.source == "sdpipe" or program.startswith("sdpipe ")):
        return name
    if record.source != "sdpipe":
        told = f"which model {brief(name)} is, is not told" if name else "it tells no model"
        remarks.append(f"{told}; the default model draws, or the one that --model names.")
        return None
    hub_id = f"{name.partition('@')[0]}@{revision}"
    if not re.fullmatch("[0-9a-f]{40}", revision) or not is_hub_id(hub_id):
        raise ModelError(
            f"{picture} was drawn by the model {brief(name)}, a path on the machine that drew it, "
            "and no path is opened on a picture's word; give the model yourself: --model NAME."
        )
    if not is_cached(hub_id, full=full):
        raise ModelError(
            f"{picture} was drawn by a model that is not here, and none is fetched on a picture's "
            f"word; to have it fetched, give it yourself: --model {hub_id}"
        )
    return hub_id


def _without_fetching(
    settings: Settings, name: str | None, full: bool, remarks: list[str]
) -> Settings:
    """The settings with the safety checker left out, where it would have to be fetched."""
    if settings.safety == "off" or name is None or not is_hub_id(name):
        return settings
    if is_checker_cached(name, full=full):
        return settings
    remarks.append(
        "the safety checker that looked at it is not here, and none is fetched on a picture's "
        "word; to have it fetched, and drawn anew: --set safety=flag"
    )
    return dataclasses.replace(settings, dim=None, safety="off")


def _vae(record: Record, picture: str | os.PathLike[str], full: bool) -> str | None:
    """The VAE that took the place of the model's own: one of the hub that is here, or none.

    One that was handed over as a module has no name to find it by; None then too.
    """
    told = record.parts.get("vae", "")
    name, _, mark = told.partition("@")
    if not re.fullmatch("[0-9a-f]{40}|sha256:[0-9a-f]{64}", mark):
        return None
    if mark.startswith("sha256:") or not is_hub_id(told):
        raise ModelError(
            f"{picture} was drawn with the VAE {brief(name)}, a path on the machine that drew it, "
            f"whose SHA-256 is {mark.removeprefix('sha256:')[:12]}..., and no path is opened on a "
            "picture's word; give that VAE yourself: --vae NAME."
        )
    if not is_part_cached(told, "vae", full=full):
        raise ModelError(
            f"{picture} was drawn with a VAE that is not here, and none is fetched on a picture's "
            f"word; to have it fetched, give it yourself: --vae {told}"
        )
    return told


def _prediction(record: Record) -> str | None:
    told = record.model.get("prediction") if record.source == "sdpipe" else None
    if told is not None:
        try:
            check_prediction(told)
        except UsageError as error:
            raise SdpipeError(f"it cannot be drawn again: {error}") from error
    return told


def _told_apart(part: str | None) -> str:
    """The hash or the commit of a part that was swapped."""
    return (part or "").rpartition("@")[2]


def _short(part: str | None) -> str:
    """A part that was swapped, in a few words; of its hash, the beginning."""
    name, at, mark = (part or "the model's own").partition("@")
    start = 19 if mark.startswith("sha256:") else 12
    return brief(name) + (f" @{mark[:start]}" if at else "")


def _device(record: Record, remarks: list[str]) -> str:
    """The device that drew the picture, where this machine has it."""
    if record.device is None:
        return "auto"
    for name in (record.device, record.device.partition(":")[0]):
        try:
            check_device(name)
            pick_device(name)
        except (UsageError, RuntimeError):  # the latter of torch, for a number beyond its range
            continue
        return name
    remarks.append(f"it was drawn on {brief(record.device)}, which is not here.")
    return "auto"


def _speed(record: Record, remarks: list[str]) -> str:
    if record.speed is None or record.speed in SPEEDS:
        return record.speed or "default"
    remarks.append(f"it was drawn with speed {brief(record.speed)}, which is not known here.")
    return "default"


def _dtype(record: Record, remarks: list[str]) -> str:
    if record.dtype is None or record.dtype in DTYPES:
        return record.dtype or "auto"
    remarks.append(f"it was drawn in {brief(record.dtype)}, which no model is loaded in here.")
    return "auto"
