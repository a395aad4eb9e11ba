"""What makes a job the job that it is: its id, else a hash of the model and the settings."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from sdpipe.errors import UsageError
from sdpipe.settings import DEFAULT_OF

OWN = ("prompt", "negative_prompt", "seed", "variation_seed")
"""The settings in which the images of a batch differ."""

MODEL = ("revision", "variant", "sha256", "prediction")

MAX_ID = 100  # bytes
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows
_DIGEST = re.compile("[0-9a-f]{64}")


def common_text(model: Mapping[str, Any], values: Mapping[str, Any]) -> bytes:
    """The model, and the settings but those of `OWN` that are not at their default, as JSON.

    model: from `ModelInfo.identity()`; its name and place don't count.
    values: from `Settings.to_dict()`; of an image that they begin with only the hash counts.
    """
    parts = {name: model.get(name) for name in MODEL}
    parts |= {name: model.get(name) or type_ for name, type_ in _ADDED.items()}
    settings = {}
    for name, value in values.items():
        if name not in OWN and value != DEFAULT_OF.get(name):
            settings[name] = value["sha256"] if isinstance(value, Mapping) else value
    return json.dumps([parts, settings], sort_keys=True).encode()


_ADDED: Mapping[str, Any] = {"parts": {}, "loras": [], "embeddings": []}


def job_digest(common: bytes, values: Mapping[str, Any]) -> bytes:
    """The SHA-256 of a job: four lines of its `common_text`, seeds, prompt and negative prompt.

    The line of seeds also says how many bytes the prompt has, for it may have lines of its own.
    """
    prompt, negative = values["prompt"].encode(), values.get("negative_prompt", "").encode()
    seeds = f"{values['seed']} {values.get('variation_seed')} {len(prompt)}".encode()
    return hashlib.sha256(b"\n".join((common, seeds, prompt, negative))).digest()


def name_key(name: str) -> bytes:
    """16 bytes for a file's name without suffix, the same for names that a disk may take for one.

    That of a job without an id, whose name is its hash, is the beginning of the hash.
    """
    if _DIGEST.fullmatch(name):
        return bytes.fromhex(name[:32])
    folded = unicodedata.normalize("NFC", name).casefold()
    return hashlib.sha256(folded.encode("utf-8", "surrogatepass")).digest()[:16]


def check_id(value: object) -> str:
    """An id that can be a file's name on every system; a whole number is one.

    Raises:
        UsageError: otherwise.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    shown = f"id={str(value)[:80]!r}"
    if not isinstance(text, str) or not text:
        raise UsageError(shown, "is no name", "give a text or a whole number")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise UsageError(shown, "is not UTF-8 text") from None
    if length > MAX_ID:
        raise UsageError(shown, f"has {length} bytes, more than {MAX_ID}", "use a shorter id")
    if (
        not text.isprintable()
        or re.search(r'[/\\:*?"<>|]', text)
        or text[0] in ". "
        or text[-1] in ". "
        or _RESERVED.fullmatch(text)
    ):
        raise UsageError(
            shown,
            "cannot be the name of a file on every system",
            "use letters, digits, - and _",
        )
    return text


def seed_of(base: int, row: int) -> int:
    """The seed of a row without one: 32 bits of the SHA-256 of "BASE ROW"."""
    return int.from_bytes(hashlib.sha256(f"{base} {row}".encode()).digest()[:4])
