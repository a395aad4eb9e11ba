"""From text to embeddings: syntax, chunks, encode, vocabulary. The names below import torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdpipe.prompt.encode import Conditioning as Conditioning
    from sdpipe.prompt.encode import condition as condition

__all__ = ["Conditioning", "condition"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sdpipe.prompt import encode

    return getattr(encode, name)
