"""Options that commands have in common, in groups: which model, on what, how fast, how drawn.

    @grouped
    def draw(prompt: Prompt, *, seed: options.Seed = None, weights: Weights) -> None: ...

is for typer a command with the options --seed, --model, --vae ... The names of a group's fields are
those of its options, and a command takes a name once.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sdpipe.cli import options
from sdpipe.errors import UsageError
from sdpipe.loading.locate import check_model, check_part
from sdpipe.loading.lora import Lora
from sdpipe.loading.single_file import check_prediction_type
from sdpipe.loading.textual_inversion import Embedding
from sdpipe.runtime.device import check_device, check_dtype, pick_speed
from sdpipe.settings import Settings

R = TypeVar("R")


def grouped(command: Callable[..., R]) -> Callable[..., R]:
    """A command whose groups, the parameters that are dataclasses, have become their fields."""
    groups: dict[str, type] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = parameter.annotation
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            groups[name] = kind
            flat += inspect.signature(kind).parameters.values()
        else:
            flat.append(parameter)

    @functools.wraps(command)
    def run(**given: Any) -> R:
        for name, group in groups.items():
            given[name] = group(**{f.name: given.pop(f.name) for f in dataclasses.fields(group)})
        return command(**given)

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in flat]
    )
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


@dataclass(frozen=True)
class Weights:
    """What is loaded."""

    model: options.Model = None
    vae: options.Vae = None
    prediction_type: options.Prediction = None
    lora: options.LoraFiles = None
    embedding: options.EmbeddingFiles = None

    def checked(self) -> dict[str, Any]:
        """The same for `Pipeline`, looked at.

        Raises:
            ModelError: there is no such model or file, or it is something else.
            UsageError: an unknown prediction, a LoRA's weight is no number, or an embedding's word
                is none.
        """
        if self.prediction_type is not None:
            check_prediction_type(self.prediction_type)
        check_model(self.model)
        check_part(self.vae, "vae")
        loras = tuple(_with_weight(options.text("--lora", each)) for each in self.lora or ())
        for given in loras:
            Lora.read(given)
        return {
            "model": self.model,
            "vae": self.vae,
            "prediction_type": self.prediction_type,
            "loras": loras,
            "embeddings": embeddings(self.embedding),
        }


@dataclass(frozen=True)
class Place:
    """Where it runs, and in what numbers."""

    device: options.Device = "auto"
    dtype: options.Dtype = "auto"

    def checked(self) -> dict[str, Any]:
        """The same for `Pipeline`. Raises UsageError where there is no such device or type."""
        check_device(self.device)
        check_dtype(self.dtype)
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Speed:
    """How fast it runs."""

    no_optimize: options.NoOptimize = False
    compile: options.Compile = False
    low_memory: options.LowMemory = False

    def checked(self) -> dict[str, Any]:
        """The same for `Pipeline`. Raises UsageError where they exclude each other."""
        pick_speed(not self.no_optimize, self.compile, self.low_memory)
        return {
            "speed": not self.no_optimize,
            "compile": self.compile,
            "low_memory": self.low_memory,
        }


@dataclass(frozen=True)
class Sampling:
    """How one picture is drawn."""

    dim: options.Dim = None
    g: options.Guidance = None
    steps: options.Steps = None
    scheduler: options.Scheduler = None
    lms_order: options.LmsOrder = None

    def checked(self, prompt: str, seed: int | None = None) -> dict[str, Any]:
        """The settings of a picture beside its prompt, by name.

        Raises:
            UsageError: one of them, or the prompt, breaks its rule.
        """
        settings = {"seed": seed, **dataclasses.asdict(self)}
        Settings(prompt=options.text("the prompt", prompt), **settings)
        return settings


def embeddings(given: Sequence[str] | None) -> tuple[str | tuple[str, str], ...]:
    """The textual inversions of a command line, looked at. Raises as `Weights.checked`."""
    pairs = [_file_and_more(options.text("--embedding", each)) for each in given or ()]
    found = tuple(file if word is None else (file, word) for file, word in pairs)
    for one in found:
        Embedding.read(one)
    return found


def _with_weight(text: str) -> tuple[str, float]:
    """FILE or FILE:WEIGHT."""
    file, weight = _file_and_more(text)
    try:
        return file, 1.0 if weight is None else float(weight)
    except ValueError:
        raise UsageError(
            f"--lora {text!r} ends in {weight!r}, which is no number; give FILE, or FILE:WEIGHT as "
            f"in {file}:0.8."
        ) from None


def _file_and_more(text: str) -> tuple[str, str | None]:
    """FILE:MORE in two; what comes before the colon has a suffix, as no drive letter has."""
    match = re.fullmatch(r"(.+\.\w+):(.*)", text, re.DOTALL)
    return (text, None) if match is None else (match[1], match[2])
