"""Single parts of a model, for what needs no network: found and read without the rest."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sdpipe.errors import ModelError
from sdpipe.loading.hub import is_hub_id
from sdpipe.loading.locate import configurations, find_model
from sdpipe.loading.single_file import look
from sdpipe.loading.sources import Sources, own_settings, read_json
from sdpipe.loading.textual_inversion import Embedding, add_tokens, check_tokens
from sdpipe.loading.weight_files import header

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CLIP_LENGTH = 77


def load_tokenizer(
    model: str | os.PathLike[str] | None = None, embeddings: Sequence[Embedding] = ()
) -> "CLIPTokenizer":
    """A model's tokenizer, without torch; `model_max_length` is what the text encoder takes.

    embeddings: whose words it is taught.

    Raises:
        ModelError: there is no such model, its tokenizer cannot be read, or has such a word.
    """
    sources = _find(model, "tokenizer")
    folder = sources.folder("tokenizer")
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            folder, local_files_only=True, **sources.tokenizer_options()
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        label = sources.places["tokenizer"].label
        raise ModelError(
            f"{label}: the tokenizer in {folder} cannot be loaded: {' '.join(str(error).split())}"
        ) from error
    beside = folder.parent / "text_encoder" / "config.json"
    config = read_json(beside, str(beside)) if beside.is_file() else {}
    room = config.get("text_config", config).get("max_position_embeddings", CLIP_LENGTH)
    tokenizer.model_max_length = min(tokenizer.model_max_length, room)
    check_tokens(tokenizer, embeddings)
    add_tokens(tokenizer, embeddings)
    return tokenizer


def read_scheduler(model: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The configuration of a model's scheduler.

    Raises:
        ModelError: there is no such model, or the configuration cannot be read.
    """
    return _find(model, "scheduler").scheduler()


def read_defaults(model: str | os.PathLike[str] | None) -> dict[str, Any]:
    """A model's own settings, of its `sdpipe.json`, as far as they are known without the hub.

    Raises:
        ModelError: there is no such model, or its settings break a rule.
    """
    if model is None or is_hub_id(str(model)):
        return {}
    place = find_model(model, parts=("scheduler",))
    path = place.path / "sdpipe.json"
    return own_settings(path, place.label) if path.is_file() else {}


def _find(model: str | os.PathLike[str] | None, part: str) -> Sources:
    place = find_model(model, parts=(part,))
    if not place.is_file:
        return Sources(place, {}, {part: place})
    if part == "scheduler":  # a single file has none: what v1-4 was trained with holds
        return Sources(place, {}, {})
    kind = look(*header(place.path, place.label))
    template = configurations(label=place.label)
    return Sources(place, {}, {part: place}, template=template, kind=kind)
