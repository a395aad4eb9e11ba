"""The pipeline over HTTP: OpenAI's and A1111's interfaces, and a page. Imports no torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdpipe.serve.server import Server as Server

__all__ = ["Server"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sdpipe.serve import server

    return getattr(server, name)
