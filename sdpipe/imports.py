"""Imports of large libraries, without Python's garbage collector in their way."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Keeps the collector still while modules are imported, and then when Python ends.

    torch, diffusers and transformers are some million objects, none of them garbage. The collector
    looks through them again and again as they are made, and twice more at the end: a third of the
    time of a short program. Between the two it works as ever.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        atexit.unregister(gc.freeze)
        atexit.register(gc.freeze)  # what is frozen is not looked through
        if was_on:
            gc.enable()
