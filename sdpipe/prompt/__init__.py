"""From text to embeddings: syntax, chunks, encode, vocabulary. The names below import torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdpipe.prompt.encode import PromptEmbeddings as PromptEmbeddings
    from sdpipe.prompt.encode import encode_prompts as encode_prompts

__all__ = ["PromptEmbeddings", "encode_prompts"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sdpipe.prompt import encode

    return getattr(encode, name)
