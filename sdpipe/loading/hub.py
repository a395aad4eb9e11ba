"""Downloads a model from the Hugging Face hub once; later uses make no request.

The small files are downloaded first, then the weights, one file after the other in this thread, so
that an interrupt ends at once, under one progress bar. `snapshot_download` alone would use threads,
and an interrupt would wait for gigabytes. Files that are finished are kept whatever happens.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sdpipe.errors import ModelError
from sdpipe.loading.bars import forward_to, silent_bar, weights_bar
from sdpipe.loading.configs import INDEX, check_index
from sdpipe.loading.hub_answers import bound_answers, check_hash
from sdpipe.loading.layout import VARIANT, Selection, list_files

Select = Callable[[Collection[str]], Selection]
"""Selects what is wanted from the names of a repository or a folder; see `layout.select_model`."""

WITHOUT_CHECKER = "leave safety out, or take a model that has a safety checker, such as v1-4"
"""The remedy for a model without a safety checker."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FIRST_TIMEOUT = 10.0  # seconds, for networks that swallow packets


class Snapshot(NamedTuple):
    """The selected files of a repository at one commit."""

    folder: Path
    commit: str
    files: Selection


def is_hub_id(text: str) -> bool:
    """Whether a text has the form owner/name or owner/name@revision."""
    repo, at, revision = text.partition("@")
    return bool(
        _ID.fullmatch(repo)
        and "--" not in repo
        and ".." not in text
        and not repo.endswith(".safetensors")  # a misspelt path
        and all(len(half) <= 96 and half[-1] not in ".-" for half in repo.split("/"))
        and (not at or re.fullmatch(r"\w[\w./+-]*", revision))
    )


def fetch(
    hub_id: str, select: Select, *, full_precision: bool = False, label: str | None = None
) -> Snapshot:
    """The files that `select` wants of `owner/name[@revision]`, downloaded if they are not cached.

    full_precision: the fp16 variant is only enough if the repository has no other weights.
    label: how messages name the model, such as "vae='owner/name'".

    Raises:
        ModelError: a file is not in the repository, or cannot be downloaded.
    """
    label = label or f"model={hub_id!r}"
    if (snapshot := cached(hub_id, select, full_precision=full_precision)) is not None:
        return snapshot

    from huggingface_hub import constants

    state = _describe_cache(missing_files(hub_id, select, full_precision=full_precision))
    if constants.is_offline_mode():
        raise ModelError(
            label,
            f"{state}, and HF_HUB_OFFLINE forbids downloads",
            "unset it for the first use, or take a local model: a folder, or emoji",
        )
    with _explain_errors(hub_id, state, label), bound_answers(label):
        folder = _download(hub_id, select, label)
    return Snapshot(folder, folder.name, _select_available(select, list_files(folder), label))


def cached(hub_id: str, select: Select, *, full_precision: bool = False) -> Snapshot | None:
    """What `fetch` returns without a request; None if it has to make one."""
    folder = _cached_folder(hub_id)
    if folder is None or _missing(hub_id, folder, select, full_precision):
        return None
    return Snapshot(folder, folder.name, select(list_files(folder)))


def missing_files(hub_id: str, select: Select, *, full_precision: bool = False) -> list[str] | None:
    """The names that `fetch` has to download; None if nothing of the repository is cached."""
    folder = _cached_folder(hub_id)
    return None if folder is None else _missing(hub_id, folder, select, full_precision)


def files_to_download(hub_id: str, select: Select) -> dict[str, int | None]:
    """Asks the hub for the name and the size in bytes of every file that `fetch` wants.

    Raises:
        ModelError: the hub does not answer, or lacks a file.
    """
    label = f"model={hub_id!r}"
    with _explain_errors(hub_id, "is not cached", label), bound_answers(label):
        sizes = _list_repository(hub_id, files_metadata=True)
    wanted = _select_available(select, sizes, label)
    return {name: sizes[name] for name in wanted.names}


def _split(hub_id: str) -> tuple[str, str]:
    repo, _, revision = hub_id.partition("@")
    return repo, revision or "main"


def _cached_folder(hub_id: str) -> Path | None:
    """The cached snapshot, complete or not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, revision = _split(hub_id)
    find = partial(snapshot_download, local_files_only=True, allow_patterns=[])
    try:
        return Path(find(repo, revision=revision))
    except LocalEntryNotFoundError:
        return None


def _cached_listing(hub_id: str, commit: str) -> dict[str, int] | None:
    """The size of every file in the repository, as it was listed for the download."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(_split(hub_id)[0], revision=commit)
    except CachedRepoTreeNotFoundError:
        return None  # it was downloaded by an older huggingface_hub
    return {file.path: file.size for file in tree}


def _missing(hub_id: str, folder: Path, select: Select, full_precision: bool) -> list[str]:
    """What a cached snapshot lacks: nothing if either kind of weights is complete and will do.

    A file of another size than the listed one is not complete.
    """
    listed = _cached_listing(hub_id, folder.name)
    have = list_files(folder) - _incomplete(folder, listed)
    found = select(have)
    wanted = found if listed is None else select(listed)
    only_half = full_precision and VARIANT in found.variants.values()
    if only_half and listed is not None:  # the repository may have no other
        only_half = wanted.weights != found.weights
    # Weights that are not taken may have an index of their shards.
    small = {name for name in wanted.files if ".index." not in name}
    if not found.missing and not only_half and small <= have:
        return []
    missing = [name for name in wanted.names if name not in have]
    return [*missing, *wanted.missing.values()] or ["the weights in float32"]


def _incomplete(folder: Path, listed: Mapping[str, int] | None) -> set[str]:
    """The cached files that have another size than the repository lists."""
    here = {n: folder / n for n in listed or () if (folder / n).is_file()}
    return {name for name, path in here.items() if path.stat().st_size != (listed or {})[name]}


def _describe_cache(missing: list[str] | None) -> str:
    if missing is None:
        return "is not cached"
    verb = "is" if len(missing) == 1 else "are"
    return f"is only partly cached: {', '.join(missing[:3])} {verb} missing or incomplete"


def _list_repository(hub_id: str, *, files_metadata: bool = False) -> dict[str, int | None]:
    from huggingface_hub import HfApi

    repo, revision = _split(hub_id)
    info = HfApi().model_info(
        repo, revision=revision, timeout=_FIRST_TIMEOUT, files_metadata=files_metadata
    )
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    if not all(isinstance(name, str) for name in sizes):
        raise ValueError("the name of a file is no text")
    return sizes


def _select_available(select: Select, names: Collection[str], label: str) -> Selection:
    """Selects from the names in a repository. Raises ModelError if a wanted file is not there."""
    wanted = select(names)
    if not wanted.missing:
        return wanted
    part, missing = next(iter(wanted.missing.items()))
    stem = missing.removesuffix(".safetensors")
    if part == "model":
        reason = "it is not a model in the diffusers layout"
        remedy = "take the hub id of such a model"
    elif part == "safety_checker":
        reason, remedy = "it has no safety checker in safetensors", WITHOUT_CHECKER
    elif any(name.startswith(stem) and name.endswith(".bin") for name in names):
        reason = f"its {part} is only there as a pickle, which can run any code"
        remedy = "take a revision or a copy of the model with .safetensors files"
    else:
        reason = f"its part {part} is missing"
        remedy = f"pass that part as {part}=, or take another model"
    raise ModelError(label, f"is on the hub, but has no {missing}: {reason}", remedy)


def _download(hub_id: str, select: Select, label: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    repo, revision = _split(hub_id)
    names = _list_repository(hub_id)  # first: no other request has a timeout
    if INDEX in select(names).files:  # before gigabytes are downloaded
        index = hf_hub_download(repo, INDEX, revision=revision, tqdm_class=silent_bar())
        check_index(Path(index).parent, label)
    wanted = _select_available(select, names, label)
    if (cache := _cached_folder(hub_id)) is not None:
        for name in _incomplete(cache, _cached_listing(hub_id, cache.name)):
            (cache / name).resolve().unlink()  # the library takes every file for complete
    fetch_small = partial(snapshot_download, allow_patterns=list(wanted.files))
    folder = Path(fetch_small(repo, revision=revision, tqdm_class=silent_bar()))
    sizes = _cached_listing(hub_id, folder.name) or {}
    missing = [name for name in wanted.all_weights if not (folder / name).is_file()]
    with weights_bar(repo, sum(sizes.get(name, 0) for name in missing)) as bar:
        for name in missing:
            path = hf_hub_download(repo, name, revision=folder.name, tqdm_class=forward_to(bar))
            check_hash(Path(path), label)
    return folder


@contextmanager
def _explain_errors(hub_id: str, state: str, label: str) -> Iterator[None]:
    """Raises a ModelError for what goes wrong in the block."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if (reason := _explain(error, hub_id, state)) is None:
            raise
        raise ModelError(label, *reason) from error


def _explain(error: Exception, hub_id: str, state: str) -> tuple[str, str] | None:
    """The rule and the remedy for a failed download; None for an error of another kind."""
    from huggingface_hub import constants, errors

    # The library wraps the cause if it then looked into the cache in vain.
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    hub, (repo, revision) = constants.ENDPOINT, _split(hub_id)
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(cause, errors.GatedRepoError):
        rule = "is gated: its owner gives it to those who accept the terms"
        return rule, f"accept them at {hub}/{repo}, then {log_in}"
    if isinstance(cause, errors.RepositoryNotFoundError):
        rule = f"is neither a local folder nor a repository that {hub} shows"
        return rule, f"check the spelling; for a private repository {log_in}"
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"has no revision {revision!r} on the hub", f"see {hub}/{repo}/tree/main for a list"
    if isinstance(cause, errors.HfHubHTTPError):
        status = cause.response.status_code
        rule = f"cannot be downloaded: {hub} answered with status {status}"
        return rule, log_in if status in (401, 403) else "try again later"
    if isinstance(cause, errors.HTTPError | errors.XetDownloadError):  # type: ignore[attr-defined]
        reason = str(cause) or type(cause).__name__
        rule = f"{state}, and the connection to {hub} failed ({reason})"
        return rule, "run again with a connection: finished files are kept"
    if isinstance(cause, OSError) and cause.errno is not None:
        rule = f"cannot be stored in {constants.HF_HUB_CACHE} ({cause})"
        remedy = "make room there, or set HF_HUB_CACHE to another folder; finished files are kept"
        return rule, remedy
    if isinstance(cause, OSError | ValueError | TypeError | LookupError | RecursionError):
        rule = f"cannot be downloaded: {hub} does not answer as a hub does ({cause})"
        return rule, "try again later"
    return None
