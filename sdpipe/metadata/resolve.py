"""What a picture was drawn with, as far as it is at hand.

A picture may come from anybody. Nothing is fetched, and no path opened, because it says so: a model
or VAE of the hub has to be cached, and a person hands over the pictures and files that it was drawn
from, the very same. Where something is left out or assumed, `remarks` gets a sentence more.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdpipe.canvas import LoadedImage, Source, load_images
from sdpipe.errors import ModelError, SdpipeError, UsageError
from sdpipe.loading.hub import is_hub_id
from sdpipe.loading.locate import BUILT_IN, is_cached, is_checker_cached, is_part_cached
from sdpipe.loading.single_file import check_prediction_type
from sdpipe.loading.weights import find_file, sha256
from sdpipe.metadata.record import Record, brief
from sdpipe.runtime.device import DTYPES, SPEEDS, check_device, pick_device
from sdpipe.settings import Settings


def pictures(
    settings: Settings,
    picture: str | os.PathLike[str],
    init: Source | None,
    mask: Source | None,
) -> tuple[LoadedImage | None, LoadedImage | None]:
    """The pictures that it was drawn from: those of `settings`, which a person handed over.

    Raises:
        UsageError: one is missing, too many, or not the very same.
    """
    given = {"init_image": init, "mask_image": mask}
    known = {"init_image": settings.init_image, "mask_image": settings.mask_image}
    for name, recorded in known.items():
        if recorded is None and given[name] is not None:
            raise UsageError(
                f"{picture} was drawn without {name}; leave --{name.replace('_', '-')} out."
            )
        if recorded is not None and given[name] is None:
            raise UsageError(
                f"{picture} was drawn from the picture {brief(recorded.name)}, which it does not "
                f"hold; give that one: --{name.replace('_', '-')} FILE."
            )
    taken = load_images(init, mask)
    for found, (name, recorded) in zip(taken, known.items(), strict=True):
        if recorded is not None and found is not None and found.sha256 != recorded.sha256:
            raise UsageError(
                f"--{name.replace('_', '-')} is not the picture that {picture} was drawn from, "
                f"{brief(recorded.name)}: the SHA-256 of its pixels is {found.sha256[:12]}..., and "
                f"not {recorded.sha256[:12]}...; give that one."
            )
    return taken


def files(
    kind: str,
    recorded: Iterable[Mapping[str, Any]],
    picture: str | os.PathLike[str],
    given: Iterable[str],
) -> list[tuple[str, Mapping[str, Any]]]:
    """The files that were added to its model, each with what is recorded of it.

    kind: "lora" or "embedding". given: those that a person handed over, in any order.

    Raises:
        UsageError: one is missing, too many, or another.
        ModelError: one can't be read.
    """
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


def model(
    record: Record, picture: str | os.PathLike[str], full: bool, remarks: list[str]
) -> str | None:
    """The model to load on the word of a picture: a built-in one, or one of the hub that is here.

    None is the default model: the picture does not tell which it was.

    Raises:
        ModelError: it is a path, or not here.
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
    if not is_cached(hub_id, full_precision=full):
        raise ModelError(
            f"{picture} was drawn by a model that is not here, and none is fetched on a picture's "
            f"word; to have it fetched, give it yourself: --model {hub_id}"
        )
    return hub_id


def without_fetching(
    settings: Settings, name: str | None, full: bool, remarks: list[str]
) -> Settings:
    """The settings with the safety checker left out, where it would have to be fetched."""
    if settings.safety == "off" or name is None or not is_hub_id(name):
        return settings
    if is_checker_cached(name, full_precision=full):
        return settings
    remarks.append(
        "the safety checker that looked at it is not here, and none is fetched on a picture's "
        "word; to have it fetched, and drawn anew: --set safety=flag"
    )
    return dataclasses.replace(settings, dim=None, safety="off")


def vae(record: Record, picture: str | os.PathLike[str], full: bool) -> str | None:
    """The VAE that took the place of the model's own: one of the hub that is here, or none.

    One that was handed over as a module has no name to find it by; None then too.

    Raises:
        ModelError: it is a path, or not here.
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
    if not is_part_cached(told, "vae", full_precision=full):
        raise ModelError(
            f"{picture} was drawn with a VAE that is not here, and none is fetched on a picture's "
            f"word; to have it fetched, give it yourself: --vae {told}"
        )
    return told


def prediction(record: Record) -> str | None:
    """What the U-Net predicts, where the person who drew it said so.

    Raises:
        SdpipeError: it is nothing that a U-Net predicts.
    """
    told = record.model.get("prediction") if record.source == "sdpipe" else None
    if told is not None:
        try:
            check_prediction_type(told)
        except UsageError as error:
            raise SdpipeError(f"it cannot be drawn again: {error}") from error
    return told


def device(record: Record, remarks: list[str]) -> str:
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


def speed(record: Record, remarks: list[str]) -> str:
    """How the networks ran, one of `device.SPEEDS`."""
    if record.speed is None or record.speed in SPEEDS:
        return record.speed or "default"
    remarks.append(f"it was drawn with speed {brief(record.speed)}, which is not known here.")
    return "default"


def dtype(record: Record, remarks: list[str]) -> str:
    """The number type that it was drawn in, where a model can be loaded in it."""
    if record.dtype is None or record.dtype in DTYPES:
        return record.dtype or "auto"
    remarks.append(f"it was drawn in {brief(record.dtype)}, which no model is loaded in here.")
    return "auto"
