"""Fetching a model from the Hugging Face hub, once: a snapshot in its cache, and no more requests.

What is cached and complete is used without asking anybody. Otherwise the small files come first,
then the weights, one file after another so that an interrupt ends at once, under a single bar.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from sdpipe.errors import ModelError
from sdpipe.loading.layout import VARIANT, Selection, listing

Select = Callable[[Collection[str]], Selection]
"""Chooses from the names that a repository or a folder has; see `layout.select_model`."""

WITHOUT_CHECKER = "leave safety out, or take a model that has one, such as v1-4."
"""What helps who asked a model for a safety checker that it does not have."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FIRST_ANSWER = 10.0  # seconds; a firewall that swallows packets must not hold a picture up


class Snapshot(NamedTuple):
    """A repository's files at one commit, as far as they were wanted."""

    folder: Path
    commit: str
    files: Selection


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id: owner/name, or owner/name@revision."""
    repo, at, revision = text.partition("@")
    return bool(
        _ID.fullmatch(repo)
        and "--" not in repo
        and ".." not in text
        and not repo.endswith(".safetensors")  # a file in a folder, misspelt
        and all(len(half) <= 96 and half[-1] not in ".-" for half in repo.split("/"))
        and (not at or re.fullmatch(r"\w[\w./+-]*", revision))
    )


def fetch(hub_id: str, select: Select, *, full: bool = False, label: str | None = None) -> Snapshot:
    """The files that `select` wants of `owner/name[@revision]`: from the cache, else from the hub.

    full: full weights were asked for; cached fp16 ones do only where the hub has no others.
    label: how messages name the model, e.g. "vae='owner/name'".

    Raises:
        ModelError: they cannot be had; the message says what happened and what to do.
    """
    label = label or f"model={hub_id!r}"
    repo, _, revision = hub_id.partition("@")
    revision = revision or "main"
    folder = _cached(repo, revision)
    have = set() if folder is None else listing(folder)
    listed = None if folder is None else _listed(repo, folder.name)
    files = _complete(have, listed, select, full)
    if folder is not None and files is not None:
        return Snapshot(folder, folder.name, files)

    from huggingface_hub import constants

    state = _state(have, listed, select)
    if constants.is_offline_mode():
        raise ModelError(
            f"{label} {state}, and HF_HUB_OFFLINE forbids to fetch more; unset that for the first "
            "use, or take a model that is here: a folder, or emoji."
        )
    try:
        folder = _download(repo, revision, select, label)
    except Exception as error:
        told = _explain(error, repo, revision, state)
        if told is None:
            raise
        raise ModelError(f"{label} {told}") from error
    return Snapshot(folder, folder.name, select(listing(folder)))


def cached(hub_id: str, select: Select, *, full: bool = False) -> Snapshot | None:
    """What `fetch` would give without asking anybody; None where it would have to."""
    repo, _, revision = hub_id.partition("@")
    folder = _cached(repo, revision or "main")
    if folder is None:
        return None
    files = _complete(listing(folder), _listed(repo, folder.name), select, full)
    return None if files is None else Snapshot(folder, folder.name, files)


def lacking(hub_id: str, select: Select, *, full: bool = False) -> list[str] | None:
    """What the cache lacks of what `fetch` would give: [] nothing, None that nothing is here."""
    repo, _, revision = hub_id.partition("@")
    folder = _cached(repo, revision or "main")
    if folder is None:
        return None
    have, listed = listing(folder), _listed(repo, folder.name)
    if _complete(have, listed, select, full) is not None:
        return []
    return _lacking(have, listed, select)


def announced(hub_id: str, select: Select) -> dict[str, int | None]:
    """Name and size, in bytes, of what `fetch` would want, asked of the hub; downloads nothing.

    Raises:
        ModelError: the hub does not say; what happened and what to do.
    """
    from huggingface_hub import HfApi

    repo, _, revision = hub_id.partition("@")
    revision = revision or "main"
    try:
        info = HfApi().model_info(
            repo, revision=revision, timeout=_FIRST_ANSWER, files_metadata=True
        )
    except Exception as error:
        told = _explain(error, repo, revision, "is not cached")
        if told is None:
            raise
        raise ModelError(f"model={hub_id!r} {told}") from error
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    wanted = select(sizes)
    _check_wanted(wanted, sizes, f"model={hub_id!r}")
    return {name: sizes[name] for name in (*wanted.files, *wanted.all_weights)}


def _cached(repo: str, revision: str) -> Path | None:
    """The folder of the cached snapshot, complete or not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[])
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def _listed(repo: str, commit: str) -> dict[str, int] | None:
    """Name and size of every file at a commit, as the hub listed them when it was downloaded."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(repo, revision=commit)}
    except CachedRepoTreeNotFoundError:
        return None  # an older hub library downloaded it


def _complete(
    have: Collection[str], listed: Collection[str] | None, select: Select, full: bool
) -> Selection | None:
    """What the cache holds, where nothing is missing that the hub would be asked for."""
    files = select(have)
    if files.missing:
        return None
    best = None if listed is None else select(listed)
    if (
        full
        and VARIANT in files.variants.values()
        and (best is None or best.weights != files.weights)
    ):
        return None
    if best is not None and not set(_without_indexes(best)) <= set(have):
        return None
    return files


def _without_indexes(files: Selection) -> list[str]:
    """The small files but for the indexes of shards, which weights that were not taken may have."""
    return [name for name in files.files if ".index." not in name]


def _state(have: Collection[str], listed: Collection[str] | None, select: Select) -> str:
    """What the cache lacks, in words."""
    if not have:
        return "is not cached"
    names = _lacking(have, listed, select)
    verb = "is" if len(names) == 1 else "are"
    return f"is cached only in part: {', '.join(names[:3])} {verb} missing"


def _lacking(have: Collection[str], listed: Collection[str] | None, select: Select) -> list[str]:
    best = select(have if listed is None else listed)
    names = [name for name in (*best.files, *best.all_weights) if name not in have]
    return [*names, *best.missing.values()]


def _download(repo: str, revision: str, select: Select, label: str) -> Path:
    """Downloads what `select` wants; finished files stay if the rest fails."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    # The only request that takes a time limit, so it goes first.
    info = HfApi().model_info(repo, revision=revision, timeout=_FIRST_ANSWER)
    names = [file.rfilename for file in info.siblings or []]
    wanted = select(names)
    _check_wanted(wanted, names, label)
    folder = Path(
        snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(wanted.files),
            tqdm_class=_silent_bar(),
        )
    )
    sizes = _listed(repo, folder.name) or {}
    todo = [name for name in wanted.all_weights if not (folder / name).is_file()]
    with _bar(repo, sum(sizes.get(name, 0) for name in todo)) as bar:
        for name in todo:
            hf_hub_download(repo, name, revision=folder.name, tqdm_class=_slice_of(bar))
    return folder


def _check_wanted(wanted: Selection, names: Collection[str], label: str) -> None:
    """Refuses a repository that has not all that is wanted of it; `names` are those it has."""
    if wanted.missing:
        part, lacking = next(iter(wanted.missing.items()))
        raise ModelError(
            f"{label} is on the hub, but has no {lacking}: " + _not_a_model(part, lacking, names)
        )


def _not_a_model(part: str, lacking: str, names: Collection[str]) -> str:
    """Why a name may be missing from a repository, and what helps."""
    if part == "model":
        return "it is not a model in the diffusers layout."
    stem = lacking.removesuffix(".safetensors")
    if part == "safety_checker":
        return f"it comes without a safety checker in safetensors; {WITHOUT_CHECKER}"
    if any(name.startswith(stem) and name.endswith(".bin") for name in names):
        return (
            f"its {part} is there only as a pickle, which could run any code; take a revision or "
            "a copy of the model with .safetensors files."
        )
    return f"its part {part} is missing; give that part with {part}=, or take another model."


def _bar(repo: str, total: int) -> Any:
    """One bar for all the weights, on stderr; none where that is no terminal."""
    from huggingface_hub.utils.tqdm import tqdm

    return tqdm(
        total=total,
        desc=f"Fetching {repo}",
        unit="B",
        unit_scale=True,
        disable=None if total else True,
    )


def _silent_bar() -> type[Any]:
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


def _slice_of(bar: Any) -> type[Any]:
    """What hf_hub_download takes for the bar of one file, and is a part of `bar`."""

    class Slice:
        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            bar.update(initial)

        def __enter__(self) -> "Slice":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            bar.update(n)

        def ignore(self, *_: object, **__: object) -> None:
            """A file's own rates, and bytes before they are unpacked, are not shown."""

        close = update_transfer = set_postfix_str = set_transfer_postfix_str = ignore

    return Slice


def _explain(error: Exception, repo: str, revision: str, state: str) -> str | None:
    """What a failed download comes down to, after the model's name; None where it is no such."""
    from huggingface_hub import constants, errors

    # Inside, the library wraps whatever happened before it looked into the cache in vain.
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    hub = constants.ENDPOINT
    if isinstance(cause, errors.GatedRepoError):
        return (
            f"is gated: its owner lets only those have it who accepted the terms. Accept them at "
            f"{hub}/{repo}, then log in with `hf auth login` or set HF_TOKEN."
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            f"is neither a folder here nor a repository that {hub} shows; check the spelling, and "
            "if it is a private one log in with `hf auth login` or set HF_TOKEN."
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"has no revision {revision!r} on the hub; {hub}/{repo}/tree/main lists them."
    if isinstance(cause, errors.HfHubHTTPError):
        status = cause.response.status_code
        remedy = (
            "log in with `hf auth login` or set HF_TOKEN"
            if status in (401, 403)
            else "try again later"
        )
        return f"cannot be fetched: {hub} answered with status {status}; {remedy}."
    if isinstance(cause, errors.HTTPError | errors.XetDownloadError):  # type: ignore[attr-defined]
        reason = str(cause) or type(cause).__name__
        return (
            f"{state}, and the connection to {hub} failed ({reason}). Run again with a "
            "connection: files that are finished are kept."
        )
    if isinstance(cause, OSError) and cause.errno is not None:
        return (
            f"cannot be stored in {constants.HF_HUB_CACHE} ({cause}); make room there, or set "
            "HF_HUB_CACHE to another folder. Files that are finished are kept."
        )
    if isinstance(cause, OSError | ValueError):
        return f"cannot be fetched: {hub} does not answer as a hub does ({cause}). Try again later."
    return None
