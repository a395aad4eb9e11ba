"""LoRA files, which change layers of a model (Hu et al. 2021, "LoRA", equation 3).

    W' = W + weight * alpha / r * B A

r is the rank; A is (r, in), B is (out, r). In a convolution, A has the kernel and B is 1 x 1. The
sum is computed once, when the model is loaded, so that drawing costs nothing more. The layers of a
file, and whether a model has them, are read from headers without torch; diffusers' own reader of
names, `lora_state_dict`, needs torch and the tensors. Two ways of naming tensors are read:

    lora_unet_down_blocks_0_..._to_q.lora_down.weight  .lora_up.weight  .alpha       (kohya)
    unet.down_blocks.0....to_q.lora_A.weight           .lora_B.weight                (diffusers)
    base_model.model.down_blocks.0....to_q.lora_A.weight                             (peft)

peft may put the adapter's name before `.weight`; it keeps alpha in `adapter_config.json`.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sdpipe.errors import ModelError, UsageError
from sdpipe.loading.lora_notes import alpha_of, check_patterns, read_notes, read_settings
from sdpipe.loading.weights import (
    find_file,
    open_weights,
    read_header,
    read_tensor,
    sha256,
    sha256_of_tensors,
)

if TYPE_CHECKING:
    import torch

LoraSpec = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]
"""A LoRA as a caller gives it: its file, or the file and the weight."""

MAX_WEIGHT = 20
"""The largest weight either way. LoRAs made as sliders use up to 10; at 20 nothing is left of the
model."""

_KOHYA = re.compile(r"lora_(unet|te1?)_(\w+)\.(lora_down\.weight|lora_up\.weight|alpha)")
_DIFFUSERS = re.compile(
    r"(?:(unet|text_encoder|base_model\.model)\.)?(.+?)"
    r"(?:(_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight"
    r"|\.(lora_[AB])(?:\.\w+)?\.weight|\.(alpha))"
)
_TEXT_LAYERS = ("text_model.", "encoder.layers.")
_END = re.compile(r"[._]lora(_\w+)?(\.down)?\.weight$")
_DOWN, _UP, _ALPHA = "down", "up", "alpha"
_ROLES = {"lora_down.weight": _DOWN, "lora_up.weight": _UP, "lora_A": _DOWN, "lora_B": _UP}
# The names of the text encoder's projections in old files of diffusers.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

_TAKE_ANOTHER = "take a LoRA for Stable Diffusion 1 or 2 with two matrices for each layer"
_OTHER_KINDS = {  # by a piece of a tensor's name: what the file is, and what to do with it
    "model.diffusion_model.": ("a whole model", "pass it as the model"),
    "lora_te2_": ("a LoRA for Stable Diffusion XL", _TAKE_ANOTHER),
    "text_encoder_2.": ("a LoRA for Stable Diffusion XL", _TAKE_ANOTHER),
    "transformer.": ("a LoRA for a transformer such as Flux", _TAKE_ANOTHER),
    "double_blocks": ("a LoRA for a transformer such as Flux", _TAKE_ANOTHER),
    ".hada_": ("a LoHa", _TAKE_ANOTHER),
    ".lokr_": ("a LoKr", _TAKE_ANOTHER),
    "dora_scale": ("a DoRA", _TAKE_ANOTHER),
    "lora_magnitude_vector": ("a DoRA", _TAKE_ANOTHER),
    ".lora_mid.": ("a LoRA in Tucker form, with three matrices for each layer", _TAKE_ANOTHER),
    "emb_params": ("a textual inversion", "pass it as an embedding"),
}


@dataclass(frozen=True)
class Layer:
    """One layer that a LoRA changes: its name in the file, its two tensors and their shapes.

    alpha: a number, or the name of the tensor that holds it; None is the rank.
    """

    name: str
    down: str
    up: str
    down_shape: tuple[int, ...]
    up_shape: tuple[int, ...]
    alpha: str | float | None = None

    @property
    def rank(self) -> int:
        """The rows of A and columns of B."""
        return self.down_shape[0]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether B A has as many rows and columns as weights of this shape."""
        rows, columns = shape[0], math.prod(shape[1:])
        return (
            math.prod(self.down_shape) == self.rank * columns
            and self.up_shape[:2] == (rows, self.rank)
            and math.prod(self.up_shape) == rows * self.rank
        )


@dataclass(frozen=True, eq=False)
class Lora:
    """The header of a LoRA file.

    weight: how much of it is added; 1 is as it was trained, 0 is nothing.
    layers: by "unet" and "text_encoder", the layers that it changes. Their keys are the names in
        the network with _ in place of every dot, as in kohya's files.
    base_model: the model that it was trained on, as the file says; "" if it does not.
    settings: those that a distilled model is drawn with, if the file says so.
    """

    path: Path
    weight: float
    layers: Mapping[str, Mapping[str, Layer]]
    base_model: str
    label: str
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, spec: LoraSpec) -> Self:
        """Reads the header of a LoRA file.

        Raises:
            UsageError: the weight is not a number from -`MAX_WEIGHT` to `MAX_WEIGHT`.
            ModelError: there is no such file, it is damaged or of another kind.
        """
        file, weight = spec if isinstance(spec, tuple) else (spec, 1.0)
        label = f"lora={os.fspath(file)!r}"
        weight = check_weight(weight, label)
        path = find_file(file, label)
        notes, tensors = read_header(path, label)
        base_model = notes.get("ss_base_model_version") or notes.get("modelspec.architecture") or ""
        layers = _layers(tensors, read_notes(path, notes, label), label)
        settings = read_settings(notes, label) if weight else {}
        return cls(path, weight, layers, base_model, label, settings)

    @property
    def parts(self) -> list[str]:
        """The parts of a model that it changes; none if the weight is 0."""
        return [part for part, layers in self.layers.items() if layers and self.weight != 0]

    def identity(self) -> dict[str, object]:
        """Identifies it in the metadata of an image; plain JSON types."""
        return {"name": self.path.name, "weight": self.weight, "sha256": self._hashes[0]}

    @property
    def tensors_sha256(self) -> str:
        """The hash by which other programs know it, see `sha256_of_tensors`."""
        return self._hashes[1]

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        return sha256(self.path), sha256_of_tensors(self.path)

    def find(self, part: str, shapes: Mapping[str, Sequence[int]], who: str) -> dict[str, Layer]:
        """Finds its layers in a network; returns them by the names of the weights.

        shapes: of the network's tensors, by their names.
        who: how messages name the network, such as "the unet of model='emoji'".

        Raises:
            ModelError: the network has no such layer, or one of another shape.
        """
        flat = {
            n.removesuffix(".weight").replace(".", "_"): n for n in shapes if n.endswith(".weight")
        }
        remedy = "take one that was made for this model or its family"
        if self.base_model:
            remedy = f"the file says that it was made for {self.base_model}: {remedy}"
        found = {}
        for name, layer in self.layers.get(part, {}).items():
            if name not in flat:
                rule = f"does not fit {who}, which has no layer for its {layer.name}"
                raise ModelError(self.label, rule, remedy)
            shape = shapes[flat[name]]
            if not layer.fits(shape):
                size = f"{layer.up_shape[0]} x {math.prod(layer.down_shape[1:])}"
                expected = f"{shape[0]} x {math.prod(shape[1:])}"
                rule = f"does not fit {who}: its {layer.name} is {size}, that layer {expected}"
                raise ModelError(self.label, rule, remedy)
            found[flat[name]] = layer
        return found


def add(part: str, network: "torch.nn.Module", loras: Sequence[Lora], who: str) -> None:
    """Adds LoRAs to the weights of a network; sums each layer in float32 and rounds once.

    Raises ModelError if a LoRA does not fit, or its file is damaged.
    """
    weights = dict(network.named_parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    with ExitStack() as stack:
        files = []
        for lora in loras:
            if part in lora.parts:
                file = stack.enter_context(open_weights(lora.path, lora.label, "pt"))
                files.append((lora, lora.find(part, shapes, who), file))
        for name in dict.fromkeys(name for _, layers, _ in files for name in layers):
            tensor = weights[name]
            total = tensor.float()
            for lora, layers, file in files:
                if name in layers:
                    total = total + lora.weight * _product(layers[name], file, lora, tensor)
            tensor.data = total.to(tensor.dtype)


def _product(layer: Layer, file: Any, lora: Lora, like: "torch.Tensor") -> "torch.Tensor":
    """alpha / r * B A in float32, in the shape and on the device of `like`."""
    matrices = (read_tensor(file, name, lora.path, lora.label) for name in (layer.down, layer.up))
    down, up = (x.to(like.device).float().flatten(1) for x in matrices)  # (r, in), (out, r)
    alpha = layer.alpha
    if isinstance(alpha, str):
        alpha = float(read_tensor(file, alpha, lora.path, lora.label))
    scale = 1.0 if alpha is None else alpha / layer.rank
    return scale * (up @ down).reshape(like.shape)


def check_weight(weight: object, label: str) -> float:
    """Checks a LoRA's weight. Raises UsageError if it is not a number up to `MAX_WEIGHT`."""
    remedy = f"give a number from -{MAX_WEIGHT} to {MAX_WEIGHT}; 1 is as it was trained"
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise UsageError(f"{label} with weight {weight!r}", "has no finite weight", remedy)
    number = float(weight)
    if abs(number) > MAX_WEIGHT:
        raise UsageError(f"{label} with weight {number:g}", "is out of range", remedy)
    return number


def _layers(
    tensors: Mapping[str, tuple[int, ...]], notes: Mapping[str, Any], label: str
) -> dict[str, dict[str, Layer]]:
    """Finds the layers of each part by the names of a file's tensors.

    Raises:
        ModelError: the file is not a LoRA, or of a kind that is not supported.
    """
    for piece, (kind, remedy) in _OTHER_KINDS.items():
        if name := next((name for name in tensors if piece in name), None):
            raise ModelError(label, f"is {kind}, as its tensor {name} shows", remedy)
    if not tensors:
        raise ModelError(label, "is empty: it has no tensors", "copy or download it again")
    roles: dict[tuple[str, str], dict[str, str]] = {}
    modules: dict[tuple[str, str], str] = {}
    for name in tensors:
        part, module, role = _parse_name(name, label)
        flat = module.replace(".", "_").removeprefix("text_model_")
        if other := roles.setdefault((part, flat), {}).get(role):
            rule = f"has two adapters: {other} and {name} change the same layer"
            raise ModelError(label, rule, "save each adapter as a file of its own")
        roles[part, flat][role] = name
        modules[part, flat] = module
    found: dict[str, dict[str, Layer]] = {"unet": {}, "text_encoder": {}}
    for part in sorted({part for (part, _), names in roles.items() if _ALPHA not in names}):
        check_patterns(notes, part, label)
    for (part, flat), names in roles.items():
        if missing := {_DOWN, _UP} - set(names):
            rule = f"has {next(iter(names.values()))}, but not its matrix {missing.pop()}"
            raise ModelError(label, rule, "copy or download it again")
        down, up = tensors[names[_DOWN]], tensors[names[_UP]]
        if len(down) < 2 or len(up) < 2 or 0 in (*down, *up):
            rule = f"has {names[_DOWN]} and {names[_UP]} of the shapes {list(down)} and {list(up)}"
            raise ModelError(label, f"{rule}, which are not matrices", "take another file")
        number = names.get(_ALPHA)
        if number and tensors[number] not in ((), (1,)):
            rule = f"has the alpha {number} of the shape {list(tensors[number])}, not one number"
            raise ModelError(label, rule, "take another file")
        stem = _END.sub("", names[_DOWN])
        alpha = number or alpha_of(notes, part, modules[part, flat], down[0], label)
        found[part][flat] = Layer(stem, names[_DOWN], names[_UP], down, up, alpha)
    return found


def _parse_name(name: str, label: str) -> tuple[str, str, str]:
    """Part, module and role of a tensor. Raises ModelError if the name is not a LoRA's."""
    if match := _KOHYA.fullmatch(name):
        part, module, role = match.groups()
        return ("unet" if part == "unet" else "text_encoder"), module, _ROLES.get(role, _ALPHA)
    if match := _DIFFUSERS.fullmatch(name.replace(".processor.", ".")):
        part, module, form, old, new, _ = match.groups()
        if part not in ("unet", "text_encoder"):
            part = "text_encoder" if module.startswith(_TEXT_LAYERS) else "unet"
        if form == "_lora":
            parent, _, last = module.rpartition(".")
            last = _OLD_TEXT.get(last, last) if part == "text_encoder" else last
            module = f"{parent}.{'to_out.0' if last == 'to_out' else last}"
        return part, module, old or _ROLES.get(new, _ALPHA)
    raise ModelError(
        label,
        f"is not a LoRA: its tensor {name} is neither lora_down or lora_up, as kohya names them, "
        "nor lora_A or lora_B, as diffusers does",
        _TAKE_ANOTHER,
    )
