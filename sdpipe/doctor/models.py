"""Which models are here and whole, and what the default one is or would cost to fetch."""

import base64
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from sdpipe.doctor.finding import Finding, size
from sdpipe.doctor.machine import free
from sdpipe.errors import SdpipeError
from sdpipe.loading.compatibility import check_fit
from sdpipe.loading.hub import announced, is_hub_id, lacking
from sdpipe.loading.layout import Selection, select_model
from sdpipe.loading.locate import BUILT_IN, BUILT_IN_FOLDER, DEFAULT, chosen_model
from sdpipe.loading.sources import Sources

V1_4_BYTES = 2 * (859_520_964 + 83_653_863 + 123_060_480)
"""The weights of v1-4's UNet, VAE and text encoder in float16, by their numbers of parameters."""


def built_in() -> Finding:
    """Whether the model in the package is as it was installed."""
    name = BUILT_IN[0]
    try:
        text = _sources(name)
        wrong = _altered(BUILT_IN_FOLDER / name)
    except SdpipeError as error:
        return Finding(f"model {name}", "problem", str(error), "install sdpipe again")
    except Exception as error:  # what it is read with is broken, not the model
        return Finding(f"model {name}", "problem", f"cannot be read: {_said(error)}")
    if wrong:
        text = f"{', '.join(wrong)} in {BUILT_IN_FOLDER / name} changed since the installation"
        return Finding(f"model {name}", "problem", text, "install sdpipe again")
    return Finding(f"model {name}", "ok", f"built in, {text}")


def default_model(*, offline: bool) -> Iterator[Finding]:
    """What draws where no --model is given, and what has to be fetched for it.

    offline: do not ask the hub.
    """
    asked = chosen_model()
    about, name = "default model", asked or DEFAULT
    if asked in BUILT_IN:
        yield Finding(about, "ok", f"SDPIPE_MODEL={asked!r}, the built-in model")
        return
    try:
        missing = lacking(name, _select) if _is_of_hub(name) else []
        if not missing and missing is not None:
            whose = f"SDPIPE_MODEL={name!r}" if asked else name
            yield Finding(about, "ok", f"{whose}, {_sources(name)}")
            return
    except Exception as error:  # it is here and damaged, and no other model draws instead
        yield Finding(about, "problem", _said(error))
        return
    yield _to_fetch(name, asked is not None, missing, offline)


def _to_fetch(name: str, asked: bool, missing: list[str] | None, offline: bool) -> Finding:
    """A model of the hub that is not here, or not all of it."""
    about = "default model"
    state = "is not cached" if missing is None else _in_part(missing)
    facts: dict[str, Any] = {"model": name, "missing": missing}
    remedy = "" if asked else "until then the built-in model draws where none is asked for"
    from huggingface_hub import constants

    if offline or constants.is_offline_mode():
        known = f" ({size(V1_4_BYTES)})" if name == DEFAULT else ""
        why = "by --offline" if offline else "HF_HUB_OFFLINE forbids to fetch it"
        text = f"{name} {state}, and the hub was not asked for it{known}: {why}"
        if asked and not offline:
            return Finding(about, "problem", text, "unset one of the two variables", facts)
        return Finding(about, "note", text, remedy, facts)
    try:
        sizes = announced(name, _select)
    except SdpipeError as error:
        known = f" Its weights are {size(V1_4_BYTES)}." if name == DEFAULT else ""
        return Finding(about, "problem" if asked else "note", f"{error}{known}", remedy, facts)
    todo = sizes if missing is None else {n: sizes[n] for n in missing if n in sizes}
    total = sum(count or 0 for count in todo.values())
    room = free(Path(constants.HF_HUB_CACHE))
    facts |= {"bytes": total, "files": sorted(todo)}
    text = f"{name} {state}; the first use fetches {len(todo)} files, {size(total)}"
    if total > room:
        text += f", and {constants.HF_HUB_CACHE} has room for {size(room)}"
        remedy = "make room there, or set HF_HUB_CACHE to another folder"
        return Finding(about, "problem" if asked else "note", text, remedy, facts)
    return Finding(about, "ok", text, facts=facts)


def cached_models() -> Iterator[Finding]:
    """Every model in the hub's cache that sdpipe could draw with, whole or not."""
    try:
        from huggingface_hub import constants
    except Exception as error:
        yield Finding("cache", "problem", f"huggingface_hub cannot be imported: {_said(error)}")
        return
    cache = Path(constants.HF_HUB_CACHE)
    found = [
        (name, index) for index in sorted(cache.glob("models--*/snapshots/*/model_index.json"))
        if (name := _hub_id(index.parent)) and _is_drawn_with(index)
    ]  # fmt: skip
    forbidden = "HF_HUB_OFFLINE is set, " if constants.is_offline_mode() else ""
    count = "no model" if not found else f"{len(found)} model{'s' * (len(found) > 1)}"
    text = f"{cache}, {forbidden}{count} for sdpipe, {size(free(cache))} free"
    yield Finding("cache", "ok", text, facts={"folder": str(cache), "models": len(found)})
    for name, _ in found:
        yield _cached(name)


def _cached(name: str) -> Finding:
    about = "cached model"
    try:
        missing = lacking(name, _select)
        if not missing:
            return Finding(about, "ok", f"{name}, {_sources(name)}", facts={"model": name})
    except Exception as error:
        return Finding(about, "note", _said(error), facts={"model": name})
    text = f"{name} {_in_part(missing)}"
    facts = {"model": name, "missing": missing}
    return Finding(about, "note", text, "the next use with a connection fetches the rest", facts)


def _sources(name: str) -> str:
    """Reads every configuration and header of a model that is here, and says how large it is.

    Raises:
        ModelError: what is wrong with it.
    """
    sources = Sources.find(name, {}, full=False)
    check_fit(sources)
    sources.defaults()
    sources.scheduler()
    model = sources.model
    assert model is not None
    if model.is_file:
        return f"{size(model.path.stat().st_size)} in {model.path}"
    paths = [model.path / n for n in (*model.files.files, *model.files.all_weights)]
    variant = "fp16" if "fp16" in model.files.variants.values() else None
    whole = f"whole, {size(sum(path.stat().st_size for path in paths))}"
    return f"{whole}, {variant}" if variant else whole


def _altered(folder: Path) -> list[str]:
    """The files in a folder of this package that are not those that pip installed.

    In a checkout, where pip copied nothing, there is nothing to compare with.
    """
    try:
        installed = metadata.files("sdpipe") or []
    except metadata.PackageNotFoundError:
        return []
    wrong = []
    for file in installed:
        path = Path(str(file.locate()))
        if file.hash is None or folder not in path.parents:
            continue
        digest = hashlib.new(file.hash.mode, path.read_bytes()).digest() if path.is_file() else b""
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != file.hash.value:
            wrong.append(path.relative_to(folder).as_posix())
    return wrong


def _hub_id(snapshot: Path) -> str | None:
    """The id that a snapshot in the cache belongs to, with its commit unless it is that of main."""
    repo = snapshot.parents[1]
    hub_id = repo.name.removeprefix("models--").replace("--", "/")
    main = repo / "refs" / "main"
    at_main = main.is_file() and main.read_text(encoding="utf-8").strip() == snapshot.name
    hub_id = hub_id if at_main else f"{hub_id}@{snapshot.name}"
    return hub_id if is_hub_id(hub_id) else None


def _is_drawn_with(index: Path) -> bool:
    """Whether a model_index.json is that of a pipeline from text to picture."""
    try:
        kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return False
    return kind == "StableDiffusionPipeline"


def _is_of_hub(name: str) -> bool:
    return is_hub_id(name) and not os.path.exists(name)


def _in_part(missing: list[str] | None) -> str:
    names = missing or []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    verb = "is" if len(names) == 1 else "are"
    return f"is cached only in part: {', '.join(names[:3])}{more} {verb} missing"


def _select(names: Collection[str]) -> Selection:
    """The files that would be taken of a model in 16 bits, or as it is."""
    return select_model(names)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, SdpipeError) else f"{type(error).__name__}: {error}"
