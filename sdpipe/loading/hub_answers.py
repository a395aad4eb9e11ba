"""Bounds on what a hub may answer, beyond those of huggingface_hub."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdpipe.errors import ModelError
from sdpipe.loading.weights import sha256

_SILENCE = 60.0  # seconds without a byte, for requests without a limit of their own
_LONGEST_WAIT = 300  # seconds that the hub may ask to wait
_LONGEST_NAME = 200  # characters; file systems take 255
_MOST_ANSWERS = 10_000  # to the requests for one model
_NAMES = ("etag", "x-linked-etag", "x-repo-commit")  # of which the cache makes names of files


def check_hash(path: Path, label: str) -> None:
    """Holds a file against the SHA-256 that the hub gave, after which the cache names its blob.

    Raises:
        ModelError: it is another; the file is removed.
    """
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
        if sha256(blob) == blob.name:
            return
        blob.unlink()
        raise ModelError(
            f"{label}: {path.name}",
            "was not downloaded as it is on the hub: its SHA-256 is another",
            "run again",
        )


@contextmanager
def bound_answers(label: str) -> Iterator[None]:
    """Refuses, in the block, what would have huggingface_hub write elsewhere or wait without end.

    Raises:
        ModelError: a name of a commit or a file is a path, or the hub asks to wait for long.
    """
    from huggingface_hub import get_session

    client, answers = get_session(), itertools.count(1)
    hooks, timeout = client.event_hooks, client.timeout

    def check(response: Any) -> None:
        names = [response.headers.get(name, "") for name in _NAMES]
        if "/resolve/" not in response.url.path and response.is_success:
            response.read()
            listed = response.json()
            names += [str(listed.get("sha") or "")] if isinstance(listed, dict) else []
        waits = [response.headers.get(name, "") for name in ("retry-after", "ratelimit")]
        longest = max((int(n) for n in re.findall(r"\b\d{1,18}\b", " ".join(waits))), default=0)
        if any(
            len(name) > _LONGEST_NAME or re.search(r"[/\\]|\.\.", re.sub("^W/", "", name))
            for name in names
        ):
            rule = "cannot be downloaded: the hub names a file or a commit by a path, or at length"
        elif response.status_code in (429, 503) and longest > _LONGEST_WAIT:
            rule = f"cannot be downloaded: the hub asks to wait {longest} seconds"
        elif next(answers) > _MOST_ANSWERS:
            rule = f"cannot be downloaded: the hub's list does not end after {_MOST_ANSWERS} pages"
        else:
            return
        raise ModelError(label, rule, "check HF_ENDPOINT, or try again later")

    client.event_hooks = {**hooks, "response": [*hooks.get("response", ()), check]}
    client.timeout = _SILENCE
    try:
        yield
    finally:
        client.event_hooks, client.timeout = hooks, timeout
