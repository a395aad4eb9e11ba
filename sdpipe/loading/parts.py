"""Reads single parts of a model that need no network, without torch."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sdpipe.errors import ModelError
from sdpipe.loading.configs import own_settings, read_config, read_model_settings
from sdpipe.loading.hub import is_hub_id
from sdpipe.loading.locate import find_configs, find_model
from sdpipe.loading.single_file import read_info
from sdpipe.loading.sources import Sources
from sdpipe.loading.textual_inversion import Embedding, add_tokens, check_tokens
from sdpipe.loading.weights import read_header

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CLIP_LENGTH = 77
"""Tokens that a text encoder takes, if its configuration does not say."""


def load_tokenizer(
    model: str | os.PathLike[str] | None = None, embeddings: Sequence[Embedding] = ()
) -> "CLIPTokenizer":
    """Loads a model's tokenizer; `model_max_length` is the length that the text encoder takes.

    embeddings: textual inversions whose words are added.

    Raises:
        ModelError: there is no such model, its tokenizer cannot be read, or has such a word.
    """
    sources = _find_part(model, "tokenizer")
    encoder = sources.folder("tokenizer").parent / "text_encoder"
    is_there = (encoder / "config.json").is_file()
    config = read_config(encoder, "text_encoder", "model") if is_there else {}
    tokenizer = read_tokenizer(sources, config.get("max_position_embeddings", CLIP_LENGTH))
    check_tokens(tokenizer, embeddings)
    add_tokens(tokenizer, embeddings)
    return tokenizer


def read_tokenizer(sources: Sources, length: int) -> "CLIPTokenizer":
    """Reads the tokenizer of a model whose text encoder takes `length` tokens.

    Raises:
        ModelError: it cannot be read.
    """
    files = sources.tokenizer_files
    try:
        return files.build(length)
    except Exception as error:  # the library has no class of error for a damaged file
        who = f"{sources.locations['tokenizer'].label}: the tokenizer in "
        who += f"{sources.folder('tokenizer')}"
        raise ModelError(who, f"cannot be loaded: {' '.join(str(error).split())}") from error


def read_scheduler(model: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Reads the configuration of a model's scheduler.

    Raises:
        ModelError: there is no such model, or the configuration cannot be read.
    """
    return _find_part(model, "scheduler").scheduler()


def read_defaults(model: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Reads a model's own settings, if they are known without asking the hub.

    Raises:
        ModelError: there is no such model, or its settings break a rule.
    """
    if model is None or is_hub_id(str(model)):
        return {}
    location = find_model(model, parts=("scheduler",))
    path = location.path / "sdpipe.json"
    values = read_model_settings(path, location.label) if path.is_file() else {}
    return values if "scheduler" in values else {**own_settings(read_scheduler(model)), **values}


def _find_part(model: str | os.PathLike[str] | None, part: str) -> Sources:
    location = find_model(model, parts=(part,))
    if not location.is_file:
        return Sources(location, {}, {part: location})
    if part == "scheduler":  # a single file has none, and v1-4's is used
        return Sources(location, {}, {})
    info = read_info(*read_header(location.path, location.label))
    template = find_configs(label=location.label)
    return Sources(location, {}, {part: location}, template=template, info=info)
