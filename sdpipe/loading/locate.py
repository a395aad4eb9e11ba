"""Where a model is: from a name to a folder or file, before anything of it is loaded.

A name is, in this order: a built-in model, a folder in the diffusers layout, a single
`.safetensors` file, a hub id. Nothing here imports torch.
"""

import difflib
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sdpipe.errors import ModelError, SdpipeWarning
from sdpipe.loading.hub import WITHOUT_CHECKER, Select, cached, fetch, is_hub_id
from sdpipe.loading.layout import (
    PARTS,
    STEMS,
    Selection,
    listing,
    select_checker,
    select_model,
    select_part,
)
from sdpipe.loading.weight_files import PICKLES, refuse_pickle

BUILT_IN = ("emoji",)
DEFAULT = "CompVis/stable-diffusion-v1-4"
BUILT_IN_FOLDER = Path(__file__).parents[1] / "models"


@dataclass(frozen=True)
class Location:
    """Where a model, or one part of it, was found.

    name: as it was asked for.
    path: a folder, or a single .safetensors file.
    files: what the folder offers; nothing for a file.
    revision: the commit, where it comes from the hub.
    fallback: nothing was asked for, and this is the built-in model instead of v1-4.
    label: how messages name it, e.g. "model='emoji'".
    """

    name: str
    path: Path
    files: Selection = field(default_factory=Selection)
    revision: str | None = None
    fallback: bool = False
    label: str = "model"

    @property
    def is_file(self) -> bool:
        """Whether it is a single file and not a folder."""
        return not self.files.roots

    def weights(self, part: str) -> list[Path]:
        """The files of a part's weights."""
        return [self.path / name for name in self.files.weights.get(part, ())]


def find_model(
    model: str | os.PathLike[str] | None = None,
    *,
    parts: Iterable[str] = PARTS,
    full: bool = False,
) -> Location:
    """Where the parts of a model are; fetches what has to be fetched.

    None is `$SDPIPE_MODEL`, else v1-4, else the built-in model with a warning.

    Raises:
        ModelError: there is no such model, a part is missing, or it cannot be fetched.
    """
    select = _select_model(tuple(parts), full)
    if model is not None:
        return _find(model, select, f"model={str(model)!r}", full)
    if name := chosen_model():
        return _find(name, select, f"SDPIPE_MODEL={name!r}", full)
    try:
        return _find(DEFAULT, select, f"The default model {DEFAULT}", full)
    except ModelError as error:
        label = f"model={BUILT_IN[0]!r}"
        found = _find(BUILT_IN[0], select, label, full)
        warnings.warn(
            f"{error} Meanwhile the built-in model, {BUILT_IN[0]}, draws at its own size.",
            SdpipeWarning,
            stacklevel=2,
        )
        return Location(found.name, found.path, found.files, fallback=True, label=label)


def chosen_model() -> str | None:
    """The model of `$SDPIPE_MODEL`, which draws where none is asked for; None where it is empty."""
    return os.environ.get("SDPIPE_MODEL") or None


def is_cached(hub_id: str, *, full: bool = False) -> bool:
    """Whether a model of the hub is here, whole: `find_model` then asks nobody for it."""
    return cached(hub_id, _select_model(PARTS, full), full=full) is not None


def _select_model(parts: tuple[str, ...], full: bool) -> Select:
    return lambda names: select_model(set(names), parts, full=full)


def is_here(model: str | os.PathLike[str] | None, *, full: bool = False) -> bool:
    """Whether `find_model` asks nobody for a model, nor `configurations` for what a file lacks."""
    name = os.fspath(model or chosen_model() or DEFAULT)
    if os.path.isfile(Path(name).expanduser()):
        return cached(DEFAULT, _select_configurations) is not None
    return not _only_on_hub(name) or is_cached(name, full=full)


def check_model(model: str | os.PathLike[str] | None) -> None:
    """Finds a misspelt or incomplete model at once; one that may be on the hub is asked for later.

    Raises:
        ModelError: there is no such model, or a part of it is missing.
    """
    if model is not None and not (isinstance(model, str) and is_hub_id(model)):
        find_model(model)


def find_part(value: str | os.PathLike[str], part: str, *, full: bool = False) -> Location:
    """Where one part is: in a folder of its own, in a model's folder, or either on the hub.

    A VAE may also be a single file.

    Raises:
        ModelError: it is not there, or cannot be fetched.
    """
    label = f"{part}={str(value)!r}"
    found = _find(value, _select_part(part, full), label, full)
    if found.is_file and part != "vae":
        raise ModelError(
            f"{label} is a file; a part is given as a folder with its configuration and weights, "
            "as a hub id, or as a loaded module."
        )
    return found


def find_checker(name: str, path: Path | None, revision: str | None, *, full: bool) -> Location:
    """Where the safety checker of a model is that was found before; fetched, where it has to be.

    name, path, revision: those of the model's `Location`; without a path its parts were handed
        over one by one.

    Raises:
        ModelError: the model has none, or it cannot be fetched.
    """
    label = f"model={name!r}"
    if revision is not None:
        hub_id = f"{name.partition('@')[0]}@{revision}"
        snapshot = fetch(hub_id, _select_checker(full), full=full, label=label)
        return Location(name, snapshot.folder, snapshot.files, snapshot.commit, label=label)
    there = path is not None and path.is_dir()
    files = _select_checker(full)(listing(path) if path is not None and there else ())
    if path is None or files.missing:
        lacking = f", for there is no {files.missing['safety_checker']} in {path}" * there
        raise ModelError(f"{label} comes without a safety checker{lacking}; {WITHOUT_CHECKER}")
    return Location(name, path, files, label=label)


def is_checker_cached(hub_id: str, *, full: bool = False) -> bool:
    """Whether `find_checker` asks nobody for the safety checker of a model of the hub."""
    return cached(hub_id, _select_checker(full), full=full) is not None


def _select_checker(full: bool) -> Select:
    return lambda names: select_checker(set(names), full=full)


def is_part_cached(hub_id: str, part: str, *, full: bool = False) -> bool:
    """Whether a part from the hub is here, whole: `find_part` then asks nobody for it."""
    return cached(hub_id, _select_part(part, full), full=full) is not None


def is_part_here(value: str | os.PathLike[str], part: str, full: bool = False) -> bool:
    """As `is_here`, for one part."""
    name = os.fspath(value)
    return not _only_on_hub(name) or is_part_cached(name, part, full=full)


def _only_on_hub(name: str) -> bool:
    return is_hub_id(name) and name not in BUILT_IN and not os.path.exists(name)


def check_part(value: str | os.PathLike[str] | None, part: str) -> None:
    """As `check_model`, for one part.

    Raises:
        ModelError: it is not there.
    """
    if value is not None and not (isinstance(value, str) and is_hub_id(value)):
        find_part(value, part)


def _select_part(part: str, full: bool) -> Select:
    return lambda names: select_part(set(names), part, full=full)


def configurations(*, label: str) -> Location:
    """v1-4's folder with its configurations and tokenizer, for weights that come without.

    Raises:
        ModelError: they are not cached and cannot be fetched.
    """
    what = f"{label} needs v1-4's configurations, and {DEFAULT}"
    return _find(DEFAULT, _select_configurations, what, False)


def _select_configurations(names: Iterable[str]) -> Selection:
    return select_model(set(names), weights=False)


def _find(value: str | os.PathLike[str], select: Select, label: str, full: bool) -> Location:
    name = os.fspath(value)
    by_name = isinstance(value, str)
    if by_name and name in BUILT_IN:
        folder = BUILT_IN_FOLDER / name
        if not folder.is_dir():
            raise ModelError(
                f"{label} is not in this installation of sdpipe, where {folder} is missing; "
                "install sdpipe again, or make the model with `sdpipe train emoji`."
            )
        return Location(name, folder, _offered(folder, select, label), label=label)
    path = Path(name).expanduser()
    # os.path answers no to what is no path at all (too long, a null byte), where Path raises.
    if name and os.path.isdir(path):
        return Location(name, path, _offered(path, select, label), label=label)
    if name and os.path.exists(path):
        _check_file(path, label)
        return Location(name, path, label=label)
    if by_name and is_hub_id(name):
        snapshot = fetch(name, select, full=full, label=label)
        return Location(name, snapshot.folder, snapshot.files, snapshot.commit, label=label)
    raise ModelError(f"{label} {_what_it_is_not(name, by_name)}")


def _offered(folder: Path, select: Select, label: str) -> Selection:
    """What a folder offers, where nothing that is wanted is missing."""
    names = listing(folder)
    files = select(names)
    if not files.missing:
        return files
    if "model" in files.missing:
        raise ModelError(f"{label} {_no_model(names)}")
    part, lacking = next(iter(files.missing.items()))
    stem = folder / lacking.removesuffix(".safetensors")
    for pickle in (f"{stem}.bin", str(stem.with_name("pytorch_model.bin"))):
        if part in STEMS and Path(pickle).exists():
            raise ModelError(
                f"{label}: the part {part} is there only as {Path(pickle).name}. "
                + refuse_pickle(Path(pickle), folder / lacking)
            )
    raise ModelError(
        f"{label}: the part {part} is missing, for there is no {lacking} in {folder}; "
        f"complete the folder, or give that part with {part}=."
    )


def _no_model(names: Iterable[str]) -> str:
    names = set(names)
    if not names:
        return "is an empty folder, not a model."
    if "config.json" in names:
        return (
            "is the folder of a single part, not of a model: it has a config.json but no "
            "model_index.json; give it as vae=, text_encoder= or unet=."
        )
    single = [name for name in sorted(names) if name.endswith(".safetensors") and "/" not in name]
    if single:
        return f"is a folder without model_index.json; give the file in it: {', '.join(single)}."
    return (
        "is a folder but not a model: it has no model_index.json, which the diffusers layout has "
        "beside unet, vae, text_encoder, tokenizer and scheduler."
    )


def _check_file(path: Path, label: str) -> None:
    if path.suffix in PICKLES:
        raise ModelError(f"{label} is a pickle. " + refuse_pickle(path, None))
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{label} is neither a folder nor a .safetensors file; those are the two that are read."
        )


def _what_it_is_not(name: str, by_name: bool) -> str:
    if not name:
        return f"is empty; name a built-in model ({', '.join(BUILT_IN)}), a folder or a hub id."
    if "://" in name:
        return "is an address; give the model's id on the hub, owner/name, or a folder."
    path_like = name[0] in "./~\\" or name.count("/") != 1 or name.endswith("/")
    if (
        not by_name
        or (path_like and "/" in name)
        or Path(name).suffix in (".safetensors", *PICKLES)
    ):
        return f"does not exist: there is no such folder or file; {_nearest_folder(name)}"
    close = difflib.get_close_matches(name, BUILT_IN, n=1)
    return (
        f"is neither a built-in model ({', '.join(BUILT_IN)}) nor a folder, a .safetensors file "
        "or a hub id, which has the form owner/name or owner/name@revision."
        + (f" Did you mean {close[0]}?" if close else "")
    )


def _nearest_folder(name: str) -> str:
    """The last part of a path that does exist, where a misspelling begins."""
    path = Path(name).expanduser().absolute()
    there = next(parent for parent in path.parents if os.path.exists(parent))
    return f"{there} is there, and has no {path.relative_to(there).parts[0]}."
