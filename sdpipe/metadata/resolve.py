"""Finds what an image was drawn with on this machine.

An image may come from anybody. Nothing is downloaded and no path is opened because of what it says:
a model or VAE of the hub has to be cached already, and a person gives the images and files that it
was drawn from, exactly the same ones. `notes` gets a sentence for everything that is left out or
assumed.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdpipe.canvas import LoadedImage, Source, load_images
from sdpipe.errors import ModelError, UsageError
from sdpipe.loading.hub import is_hub_id
from sdpipe.loading.locate import BUILT_IN, is_cached
from sdpipe.loading.single_file import check_prediction_type
from sdpipe.loading.weights import BUILT_IN_LORAS, find_file, sha256
from sdpipe.metadata.record import Record, RecordError, truncate
from sdpipe.runtime.device import DTYPES, SPEEDS, check_device, pick_device
from sdpipe.settings import TWO_CALL_SCHEDULERS, Settings

NO_PATH = "and no path is opened because an image names it"
NO_FETCH = "and nothing is downloaded because an image names it"

MAX_PIXELS = 2**24
"""Drawn at once because an image says so, at most: 64 images of 512 x 512, or 1 of 4096 x 4096."""

MAX_WORK = 50 * MAX_PIXELS
"""Pixels times steps that are drawn because an image says so; a second pass counts as well, and
Heun calls the U-Net twice."""

OWN_SIDES = {"emoji": 128}
"""Of the images that a built-in model is made for; both bounds go with its square, of 512 x 512."""


def resolve_images(
    settings: Settings,
    path: str | os.PathLike[str],
    init_image: Source | None,
    mask_image: Source | None,
) -> tuple[LoadedImage | None, LoadedImage | None]:
    """The images that the image at `path` was drawn from, out of those that a person gives.

    Raises:
        UsageError: one is missing, not needed, or another image than the recorded one.
    """
    given = {"init_image": init_image, "mask_image": mask_image}
    known = {"init_image": settings.init_image, "mask_image": settings.mask_image}
    for name, recorded in known.items():
        option = f"--{name.replace('_', '-')}"
        if recorded is None and given[name] is not None:
            raise UsageError(f"{path}", f"was drawn without {name}", f"leave {option} out")
        if recorded is not None and given[name] is None:
            raise UsageError(
                f"{path}",
                f"was drawn from the image {truncate(recorded.name)}, which it does not contain",
                f"give that image: {option} FILE",
            )
    loaded = load_images(init_image, mask_image)
    for found, (name, recorded) in zip(loaded, known.items(), strict=True):
        if recorded is not None and found is not None and found.sha256 != recorded.sha256:
            raise UsageError(
                f"{name}={found.name!r}",
                f"is not the image that {path} was drawn from, {truncate(recorded.name)}: the "
                f"SHA-256 of its pixels is {found.sha256[:12]}... and not "
                f"{recorded.sha256[:12]}...",
                "give that image",
            )
    return loaded


def resolve_files(
    kind: str,
    recorded: Iterable[Mapping[str, Any]],
    path: str | os.PathLike[str],
    given: Iterable[str],
) -> list[tuple[str, Mapping[str, Any]]]:
    """The files that were added to the model, each with what is recorded of it.

    kind: "lora" or "embedding".
    given: the files that a person gives, in any order.

    Raises:
        UsageError: one is missing, not needed, or another file than the recorded one.
        ModelError: one cannot be read.
    """
    by_hash = {sha256(find_file(file, f"{kind}={file!r}")): file for file in given}
    found = []
    for entry in recorded:
        for name, built_in in BUILT_IN_LORAS.items():
            if entry["name"] == built_in.name and entry["sha256"] == sha256(built_in):
                by_hash.setdefault(entry["sha256"], name)
        if entry["sha256"] not in by_hash:
            unfit = ", ".join(truncate(file) for file in by_hash.values())
            raise UsageError(
                f"{path}",
                f"was drawn with the {kind} {truncate(entry['name'])}, which it does not contain",
                f"give that file, whose SHA-256 is {entry['sha256'][:12]}...: --{kind} FILE"
                + (f" ({unfit} is another file)" if unfit else ""),
            )
        found.append((by_hash[entry["sha256"]], entry))
    for file in set(by_hash.values()) - {file for file, _ in found}:
        raise UsageError(
            f"{path}", f"was drawn without {truncate(file)}", f"leave --{kind} {file} out"
        )
    return found


def resolve_model(
    record: Record, path: str | os.PathLike[str], full_precision: bool, notes: list[str]
) -> str | None:
    """The model to load because an image names it: built-in, or of the hub and cached.

    None is the default model, where the image does not name one of ours.

    Raises:
        ModelError: the image names a path, or a model that is not cached.
    """
    name, revision = record.model.get("name", ""), record.model.get("revision", "")
    program = record.versions.get("program", "")
    if name in BUILT_IN and (record.source == "sdpipe" or program.startswith("sdpipe ")):
        return name
    if record.source != "sdpipe":
        unknown = f"its model {truncate(name)} is not known here" if name else "it names no model"
        notes.append(f"{unknown}; the default model draws, or the one given by --model.")
        return None
    hub_id = f"{name.partition('@')[0]}@{revision}"
    if not re.fullmatch("[0-9a-f]{40}", revision) or not is_hub_id(hub_id):
        raise ModelError(
            f"{path}",
            f"was drawn by the model {truncate(name)}, a path on another machine, {NO_PATH}",
            "give the model: --model NAME",
        )
    if not is_cached(hub_id, full_precision=full_precision):
        raise ModelError(
            f"{path}",
            f"was drawn by a model that is not on this machine, {NO_FETCH}",
            f"to have it downloaded, give it: --model {hub_id}",
        )
    return hub_id


def without_missing_checker(
    settings: Settings, name: str | None, full_precision: bool, notes: list[str]
) -> Settings:
    """The settings with the safety checker off where it would have to be downloaded."""
    if settings.safety == "off" or name is None or not is_hub_id(name):
        return settings
    if is_cached(name, "safety_checker", full_precision=full_precision):
        return settings
    notes.append(
        f"its safety checker is not on this machine, {NO_FETCH}; to have it downloaded, draw the "
        "image anew: --set safety=flag."
    )
    return dataclasses.replace(settings, dim=None, safety="off")


def resolve_vae(record: Record, path: str | os.PathLike[str], full_precision: bool) -> str | None:
    """The VAE of the hub that replaced the model's own, if it is cached.

    None where nothing did, or a module without a name, which cannot be found again.

    Raises:
        ModelError: the image names a path, or a VAE that is not cached.
    """
    recorded = record.parts.get("vae", "")
    name, _, mark = recorded.partition("@")
    if not re.fullmatch("[0-9a-f]{40}|sha256:[0-9a-f]{64}", mark):
        return None
    if mark.startswith("sha256:") or not is_hub_id(recorded):
        raise ModelError(
            f"{path}",
            f"was drawn with the VAE {truncate(name)}, a path on another machine, whose SHA-256 is "
            f"{mark.removeprefix('sha256:')[:12]}..., {NO_PATH}",
            "give that VAE: --vae NAME",
        )
    if not is_cached(recorded, "vae", full_precision=full_precision):
        raise ModelError(
            f"{path}",
            f"was drawn with a VAE that is not on this machine, {NO_FETCH}",
            f"to have it downloaded, give it: --vae {recorded}",
        )
    return recorded


def resolve_prediction(record: Record) -> str | None:
    """The prediction type of the U-Net, where the person who drew the image gave it.

    Raises:
        RecordError: no U-Net predicts this.
    """
    recorded = record.model.get("prediction") if record.source == "sdpipe" else None
    if recorded is not None:
        try:
            check_prediction_type(recorded)
        except UsageError as error:
            raise RecordError(*error.args) from error
    return recorded


def resolve_device(record: Record, notes: list[str]) -> str:
    """The device that drew the image, where this machine has it, else "auto"."""
    if record.device is None:
        return "auto"
    for name in (record.device, record.device.partition(":")[0]):
        try:
            check_device(name)
            pick_device(name)
        except (UsageError, RuntimeError):  # the latter of torch, for a number beyond its range
            continue
        return name
    notes.append(f"it was drawn on {truncate(record.device)}, which is not on this machine.")
    return "auto"


def resolve_speed(record: Record, notes: list[str]) -> str:
    """How the networks ran, one of `device.SPEEDS`; none is compiled because an image says so."""
    if record.speed == "compiled":
        notes.append(
            "it was drawn by compiled networks, and none is compiled because an image says so; its "
            "last bits may differ."
        )
        return "default"
    if record.speed is None or record.speed in SPEEDS:
        return record.speed or "default"
    notes.append(f"it was drawn with speed {truncate(record.speed)}, which is not known here.")
    return "default"


def resolve_dtype(record: Record, notes: list[str]) -> str:
    """The number type of the image, where a model can be loaded in it, else "auto"."""
    if record.dtype is None or record.dtype in DTYPES:
        return record.dtype or "auto"
    notes.append(f"it was drawn in {truncate(record.dtype)}, which no model is loaded in here.")
    return "auto"


def part_mark(part: str | None) -> str:
    """The hash or the commit of a part that replaced the model's own."""
    return (part or "").rpartition("@")[2]


def describe_part(part: str | None) -> str:
    """A part that replaced the model's own, in a few words; of its hash, the beginning."""
    name, at, mark = (part or "the model's own").partition("@")
    length = 19 if mark.startswith("sha256:") else 12
    return truncate(name) + (f" @{mark[:length]}" if at else "")


def most_pixels(record: Record) -> int:
    """`MAX_PIXELS` of the model that the image names."""
    side = OWN_SIDES.get(record.model.get("name", ""), 512)
    return MAX_PIXELS * side**2 // 512**2


def check_size(record: Record, settings: Settings, changes: Mapping[str, Any]) -> None:
    """Refuses an image beyond `MAX_PIXELS` or `MAX_WORK` unless a person asked for it."""
    width, height = settings.output_size
    most = most_pixels(record)
    asked = {"width", "height", "dim", "hires_scale"} & set(changes)
    if width * height > most and not asked:
        raise RecordError(
            f"its size of {width} x {height}",
            f"is more than the {most} pixels that are drawn because an image says so",
            f"ask for it: --set width={settings.width} --set height={settings.height}",
        )
    steps, most = settings.steps or 0, MAX_WORK // MAX_PIXELS * most
    calls = 1 + (settings.scheduler in TWO_CALL_SCHEDULERS)
    passes = (1 + (settings.hires_scale is not None)) * calls
    if passes * steps * width * height > most and not asked | ({"steps"} & set(changes)):
        raise RecordError(
            f"its {steps} steps of {width} x {height}",
            f"are more than the {most} pixels times steps that are drawn because an image says so",
            f"ask for it: --set steps={steps}",
        )
