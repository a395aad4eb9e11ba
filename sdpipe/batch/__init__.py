"""The engine: many jobs, each drawn exactly once, whoever else draws them. Imports no torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdpipe.batch.batch import Drawn as Drawn
    from sdpipe.batch.batch import run_batch as run_batch

__all__ = ["Drawn", "run_batch"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sdpipe.batch import batch

    return getattr(batch, name)
