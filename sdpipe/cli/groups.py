"""Options that commands have in common, in groups: which model, on what, how fast, how drawn.

    @grouped
    def draw(prompt: Prompt, *, settings: SettingsOptions, model: ModelOptions) -> None: ...

is for typer a command with the options --seed, --steps, ..., --model, --vae, ... A group makes its
options, `parameters`, and takes their values by the same names.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from sdpipe.cli import options
from sdpipe.errors import UsageError
from sdpipe.loading.locate import check_model, check_part
from sdpipe.loading.lora import Lora
from sdpipe.loading.single_file import check_prediction_type
from sdpipe.loading.textual_inversion import Embedding
from sdpipe.loading.weights import BUILT_IN_LORAS
from sdpipe.runtime.device import check_device, check_dtype, pick_speed
from sdpipe.settings import DEFAULT_OF, RULES, Settings

R = TypeVar("R")


def grouped(command: Callable[..., R]) -> Callable[..., R]:
    """A command whose groups, the parameters that are `OptionGroup`s, have become their options."""
    groups: dict[str, type[OptionGroup]] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = parameter.annotation
        if isinstance(kind, type) and issubclass(kind, OptionGroup):
            groups[name] = kind
            flat += kind.parameters()
        else:
            flat.append(parameter)

    @functools.wraps(command)
    def run(**given: Any) -> R:
        for name, group in groups.items():
            given[name] = group(**{p.name: given.pop(p.name) for p in group.parameters()})
        return command(**given)

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in flat]
    )
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


class OptionGroup:
    """Options that belong together: a dataclass whose fields are the options."""

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """The options, as typer reads them off a function."""
        return list(inspect.signature(cls).parameters.values())

    def to_kwargs(self) -> dict[str, Any]:
        """The checked values, as `Pipeline` or `Pipeline.generate` takes them."""
        raise NotImplementedError


class SettingsOptions(OptionGroup):
    """An option for each setting but the prompt, from the field table.

    values: by the names of `Settings`; as typed, where `several` values of a setting are possible.
    """

    names: ClassVar[Sequence[str]] = tuple(name for name in RULES if name != "prompt")
    several: ClassVar[Sequence[str]] = ()

    def __init__(self, **values: Any) -> None:
        self.values = values

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """The options; what is left out has the default of `Settings`, and in a sweep None."""
        return [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None if name in cls.several else DEFAULT_OF[name],
                annotation=cls._annotation(name),
            )
            for name in cls.names
        ]

    @classmethod
    def _annotation(cls, name: str) -> Any:
        several = name in cls.several
        kind = bool if not RULES[name].metavar and not several else Any
        return Annotated[kind, options.setting(name, several=several)]

    def to_kwargs(self) -> dict[str, Any]:
        """The settings; the files of init_image and mask_image are read.

        Raises:
            UsageError: as `canvas.load_images`.
        """
        values = dict(self.values)
        init, mask = values.pop("init_image", None), values.pop("mask_image", None)
        if init is None and mask is None:
            return values
        from sdpipe.canvas import load_images

        init, mask = load_images(init, mask)
        return {**values, "init_image": init, "mask_image": mask}


class SamplingOptions(SettingsOptions):
    """The settings of the commands that show how one image is drawn."""

    names: ClassVar[Sequence[str]] = ("seed", "dim", "g", "steps", "scheduler", "lms_order")

    def check(self, prompt: str) -> dict[str, Any]:
        """The settings, checked together with a prompt. Raises UsageError where one is wrong."""
        Settings(prompt=prompt, **self.values)
        return self.to_kwargs()


@dataclass(frozen=True)
class ModelOptions(OptionGroup):
    """Which model is loaded, and what is added to it."""

    model: options.Model = None
    vae: options.Vae = None
    prediction_type: options.Prediction = None
    lora: options.LoraFiles = None
    embedding: options.EmbeddingFiles = None

    def to_kwargs(self) -> dict[str, Any]:
        """The checked values for `Pipeline`.

        Raises:
            ModelError: there is no such model or file, or it is something else.
            UsageError: an unknown prediction type, a LoRA's weight is not a number, or an
                embedding's word cannot be used.
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
class DeviceOptions(OptionGroup):
    """Where it runs, and in which number type."""

    device: options.Device = "auto"
    dtype: options.Dtype = "auto"

    def to_kwargs(self) -> dict[str, Any]:
        """The checked values for `Pipeline`; raises UsageError for an unknown device or type."""
        check_device(self.device)
        check_dtype(self.dtype)
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class SpeedOptions(OptionGroup):
    """How fast it runs."""

    no_optimize: options.NoOptimize = False
    compile: options.Compile = False
    low_memory: options.LowMemory = False

    def to_kwargs(self) -> dict[str, Any]:
        """The checked values for `Pipeline`; raises UsageError where they exclude each other."""
        pick_speed(not self.no_optimize, self.compile, self.low_memory)
        return {
            "speed": not self.no_optimize,
            "compile": self.compile,
            "low_memory": self.low_memory,
        }


def embeddings(given: Sequence[str] | None) -> tuple[str | tuple[str, str], ...]:
    """The textual inversions of a command line, looked at. Raises as `ModelOptions.to_kwargs`."""
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
            f"--lora {text!r}",
            f"ends in {weight!r}, which is not a number",
            f"give FILE, or FILE:WEIGHT as in {file}:0.8",
        ) from None


def _file_and_more(text: str) -> tuple[str, str | None]:
    """FILE:MORE in two; what comes before the colon has a suffix or is built in, as no drive letter
    is.
    """
    names = "|".join(BUILT_IN_LORAS)
    match = re.fullmatch(rf"(.+\.\w+|{names}):(.*)", text, re.DOTALL)
    return (text, None) if match is None else (match[1], match[2])
