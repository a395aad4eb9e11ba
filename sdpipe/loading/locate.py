"""Finds a model by its name: a folder, a single file or a repository on the hub.

A name is, in this order: a built-in model, a folder in the diffusers layout, a single
`.safetensors` file, a hub id. Nothing is loaded, and torch is not imported.
"""

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sdpipe.errors import ModelError, ModelNameError
from sdpipe.loading.configs import INDEX, check_index
from sdpipe.loading.hub import WITHOUT_CHECKER, Select, cached, fetch, is_hub_id
from sdpipe.loading.layout import (
    PARTS,
    WEIGHT_NAMES,
    Selection,
    list_files,
    select_checker,
    select_model,
    select_part,
)
from sdpipe.loading.weights import PICKLES, check_file, pickle_error

BUILT_IN = ("emoji",)
DEFAULT = "CompVis/stable-diffusion-v1-4"
BUILT_IN_FOLDER = Path(__file__).parents[1] / "models"
SELECT_CONFIGS = partial(select_model, weights=False)


@dataclass(frozen=True)
class Location:
    """Where a model, or one part of it, is.

    name: the name that was asked for.
    path: a folder, or a single .safetensors file.
    files: the files in the folder; empty for a single file.
    revision: the commit, for a model from the hub.
    label: how messages name it, such as "model='emoji'".
    """

    name: str
    path: Path
    files: Selection = field(default_factory=Selection)
    revision: str | None = None
    label: str = "model"

    @property
    def is_file(self) -> bool:
        """Whether it is a single file, not a folder."""
        return not self.files.roots

    def weights(self, part: str) -> list[Path]:
        """The weight files of a part."""
        return [self.path / name for name in self.files.weights.get(part, ())]


def find_model(
    model: str | os.PathLike[str] | None = None,
    *,
    parts: Iterable[str] = PARTS,
    full_precision: bool = False,
) -> Location:
    """Finds the parts of a model; downloads them if they are on the hub and not cached.

    None is `$SDPIPE_MODEL`, else v1-4.

    Raises:
        ModelError: there is no such model, a part is missing or cannot be downloaded.
    """
    select = partial(select_model, parts=tuple(parts), full_precision=full_precision)
    if model is not None:
        return _find(model, select, f"model={str(model)!r}", full_precision)
    if name := chosen_model():
        return _find(name, select, f"SDPIPE_MODEL={name!r}", full_precision)
    try:
        return _find(DEFAULT, select, f"the default model {DEFAULT}", full_precision)
    except ModelError as error:
        remedy = f"{error.remedy}; or " if error.remedy else ""
        remedy += f'use the built-in model: Pipeline("{BUILT_IN[0]}"), --model {BUILT_IN[0]}'
        raise ModelError(error.value, error.rule, remedy) from error


def public_name(path: Path) -> str:
    """How an image names a local model: by its folder or file; where it lies is not told."""
    path = Path(os.path.abspath(path))
    is_other = path.name in BUILT_IN and path.parent != BUILT_IN_FOLDER
    return f"./{path.name}" if is_other else path.name


def chosen_model() -> str | None:
    """The model of `$SDPIPE_MODEL`; None if it is unset or empty."""
    return os.environ.get("SDPIPE_MODEL") or None


def find_part(
    value: str | os.PathLike[str], part: str, *, full_precision: bool = False
) -> Location:
    """Finds one part: in a folder of its own or of a model, local or on the hub.

    A VAE may also be a single file.

    Raises:
        ModelError: it is missing or cannot be downloaded.
    """
    label = f"{part}={str(value)!r}"
    found = _find(
        value, partial(select_part, part=part, full_precision=full_precision), label, full_precision
    )
    if found.is_file and part != "vae":
        remedy = "give a folder with its configuration and weights, a hub id or a loaded module"
        raise ModelError(label, "is a file, and only a VAE can be given as one", remedy)
    return found


def find_checker(
    name: str, path: Path | None, revision: str | None, *, full_precision: bool
) -> Location:
    """Finds the safety checker of a model; downloads it if it is on the hub and not cached.

    name, path, revision: those of the model's `Location`; path is None if all parts were passed
        on their own.

    Raises:
        ModelError: the model has none, or it cannot be downloaded.
    """
    label = f"model={name!r}"
    select = partial(select_checker, full_precision=full_precision)
    if revision is not None:
        hub_id = f"{name.partition('@')[0]}@{revision}"
        return _fetch(name, hub_id, select, label, full_precision)
    is_folder = path is not None and path.is_dir()
    files = select(list_files(path) if path is not None and is_folder else ())
    if path is None or files.missing:
        reason = f": there is no {files.missing['safety_checker']} in {path}" if is_folder else ""
        raise ModelError(label, f"has no safety checker{reason}", WITHOUT_CHECKER)
    return Location(name, path, files, label=label)


def find_configs(*, label: str) -> Location:
    """Finds v1-4's configurations and tokenizer, for weights that come without.

    Raises:
        ModelError: they are not cached and cannot be downloaded.
    """
    return _find(DEFAULT, SELECT_CONFIGS, f"{label} needs v1-4's configurations. {DEFAULT}", False)


def check_model(model: str | os.PathLike[str] | None) -> None:
    """Checks that a model is there and complete, unless it may be on the hub.

    Raises:
        ModelError: otherwise.
    """
    if model is not None and not (isinstance(model, str) and is_hub_id(model)):
        find_model(model)


def check_part(value: str | os.PathLike[str] | None, part: str) -> None:
    """Checks that a part is there and complete, unless it may be on the hub.

    Raises:
        ModelError: otherwise.
    """
    if value is not None and not (isinstance(value, str) and is_hub_id(value)):
        find_part(value, part)


def is_cached(hub_id: str, part: str | None = None, *, full_precision: bool = False) -> bool:
    """Whether a model on the hub, or a part of it, is cached, so that no request is made.

    part: as in `find_part`, or "safety_checker".
    """
    whole = {None: select_model, "safety_checker": select_checker}
    select = whole.get(part) or partial(select_part, part=str(part))
    select = partial(select, full_precision=full_precision)
    return cached(hub_id, select, full_precision=full_precision) is not None


def is_model_local(model: str | os.PathLike[str] | None, *, full_precision: bool = False) -> bool:
    """Whether `find_model` makes no request, nor `find_configs` for a single file."""
    name = os.fspath(model or chosen_model() or DEFAULT)
    if os.path.isfile(Path(name).expanduser()):
        return cached(DEFAULT, SELECT_CONFIGS) is not None
    return not _is_on_hub(name) or is_cached(name, full_precision=full_precision)


def is_part_local(
    value: str | os.PathLike[str], part: str, *, full_precision: bool = False
) -> bool:
    """Whether `find_part` makes no request."""
    name = os.fspath(value)
    return not _is_on_hub(name) or is_cached(name, part, full_precision=full_precision)


def _is_on_hub(name: str) -> bool:
    return is_hub_id(name) and name not in BUILT_IN and not os.path.exists(name)


def _find(
    value: str | os.PathLike[str], select: Select, label: str, full_precision: bool
) -> Location:
    name = os.fspath(value)
    is_name = isinstance(value, str)
    if is_name and name in BUILT_IN:
        folder = BUILT_IN_FOLDER / name
        if not folder.is_dir():
            raise ModelError(
                label,
                f"is not in this installation of sdpipe: {folder} is missing",
                "install sdpipe again, or make the model with `sdpipe train emoji`",
            )
        return Location(name, folder, _select_from(folder, select, label), label=label)
    path = Path(name).expanduser()
    # Path.is_dir raises for what cannot be a path (too long, a null byte), os.path.isdir does not.
    if name and os.path.isdir(path):
        return Location(name, path, _select_from(path, select, label), label=label)
    if name and os.path.exists(path):
        check_file(path, label)
        if path.suffix in PICKLES:
            raise pickle_error(label, path)
        if path.suffix != ".safetensors":
            raise ModelError(label, "is a file of another format", "give a .safetensors file")
        return Location(name, path, label=label)
    if is_name and is_hub_id(name):
        return _fetch(name, name, select, label, full_precision)
    raise _not_found(name, is_name, label)


def _fetch(name: str, hub_id: str, select: Select, label: str, full_precision: bool) -> Location:
    snapshot = fetch(hub_id, select, full_precision=full_precision, label=label)
    if INDEX in snapshot.files.files:
        check_index(snapshot.folder, label)
    return Location(name, snapshot.folder, snapshot.files, snapshot.commit, label=label)


def _select_from(folder: Path, select: Select, label: str) -> Selection:
    """Selects from a folder. Raises ModelError if a wanted file is missing."""
    names = list_files(folder)
    files = select(names)
    if INDEX in files.files:
        check_index(folder, label)
    if not files.missing:
        return files
    if "model" in files.missing:
        raise ModelError(label, *_explain_folder(names))
    part, missing = next(iter(files.missing.items()))
    stem = folder / missing.removesuffix(".safetensors")
    for pickle in (stem.with_name(f"{stem.name}.bin"), stem.with_name("pytorch_model.bin")):
        if part in WEIGHT_NAMES and pickle.exists():
            raise pickle_error(f"{label}: the {part} in {pickle}", pickle, folder / missing)
    raise ModelError(
        f"{label}: the part {part}",
        f"is missing: there is no {missing} in {folder}",
        f"complete the folder, or pass that part as {part}=",
    )


def _explain_folder(names: set[str]) -> tuple[str, str]:
    """The rule and the remedy for a folder without model_index.json."""
    if not names:
        return "is an empty folder", "give the folder of a model"
    if "config.json" in names:
        rule = "is the folder of a single part: it has config.json, but no model_index.json"
        return rule, "pass it as vae=, text_encoder= or unet="
    single = [name for name in sorted(names) if name.endswith(".safetensors") and "/" not in name]
    remedy = f"give the file in it: {', '.join(single)}" if single else "give the folder of a model"
    return "is a folder without model_index.json, so not one in the diffusers layout", remedy


def _not_found(name: str, is_name: bool, label: str) -> ModelError:
    """The error for a name that is neither a model nor a hub id."""
    built_in = ", ".join(BUILT_IN)
    if not name:
        remedy = f"give a built-in model ({built_in}), a folder or a hub id"
        return ModelNameError(label, "is empty", remedy)
    if "://" in name:
        remedy = "give the model's hub id, owner/name, or a folder"
        return ModelNameError(label, "is a URL, and only hub ids are downloaded", remedy)
    looks_like_path = name[0] in "./~\\" or name.count("/") != 1 or name.endswith("/")
    is_file_name = Path(name).suffix in (".safetensors", *PICKLES)
    if not is_name or (looks_like_path and "/" in name) or is_file_name:
        path = Path(name).expanduser().absolute()
        parent = next(parent for parent in path.parents if os.path.exists(parent))
        missing = path.relative_to(parent).parts[0]
        return ModelNameError(label, "does not exist", f"{parent} exists, but has no {missing}")
    close = difflib.get_close_matches(name, BUILT_IN, n=1)
    rule = f"is neither a built-in model ({built_in}), a folder, a .safetensors file nor a hub id"
    remedy = (
        f"the closest name is {close[0]}"
        if close
        else "a hub id is owner/name or owner/name@revision"
    )
    return ModelNameError(label, rule, remedy)
