"""A thin text-to-image pipeline over diffusers.

    from sdpipe import Pipeline

    Pipeline("emoji").generate("red apple", seed=42).save("apple.png")

The names below are loaded when first used (PEP 562), so `import sdpipe` imports no torch.
"""

import atexit
import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sdpipe.components import Components as Components
    from sdpipe.components import load as load
    from sdpipe.denoise import Step as Step
    from sdpipe.errors import ModelError as ModelError
    from sdpipe.errors import NotFiniteError as NotFiniteError
    from sdpipe.errors import SdpipeError as SdpipeError
    from sdpipe.errors import SdpipeWarning as SdpipeWarning
    from sdpipe.errors import UsageError as UsageError
    from sdpipe.latents import latents_to_pil as latents_to_pil
    from sdpipe.latents import pil_to_latents as pil_to_latents
    from sdpipe.metadata.save import save_image as save_image
    from sdpipe.pipeline import Pipeline as Pipeline
    from sdpipe.pipeline import Result as Result
    from sdpipe.settings import Settings as Settings

_HOMES = {
    "Components": "components",
    "load": "components",
    "Step": "denoise",
    "ModelError": "errors",
    "NotFiniteError": "errors",
    "SdpipeError": "errors",
    "SdpipeWarning": "errors",
    "UsageError": "errors",
    "latents_to_pil": "latents",
    "pil_to_latents": "latents",
    "save_image": "metadata.save",
    "Pipeline": "pipeline",
    "Result": "pipeline",
    "Settings": "settings",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sdpipe' has no attribute {name!r}")
    with _without_collector():
        value = getattr(importlib.import_module(f"sdpipe.{_HOMES[name]}"), name)
        globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Disables the garbage collector during large imports, and freezes the survivors at exit.

    torch, diffusers and transformers make a million objects that live as long as the process. The
    collector would look through them again and again, a third of the time of a short program.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        atexit.unregister(gc.freeze)
        atexit.register(gc.freeze)
        if was_enabled:
            gc.enable()
