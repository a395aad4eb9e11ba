"""A LoRA: a small file that changes layers of a model (Hu et al. 2021, LoRA, equation 3).

    W' = W + weight * alpha / r * B A

r is the rank, A (r, in), B (out, r); of a convolution A has the kernel, and B is one of 1 x 1. The
sum is made once, when the model is loaded: drawing then costs what it cost before. Which layers a
file changes, and whether a model has them, is read from the headers, without torch.

Two ways of naming tensors are read, whatever program wrote them:

    lora_unet_down_blocks_0_..._to_q.lora_down.weight  .lora_up.weight  .alpha       (kohya)
    unet.down_blocks.0....to_q.lora_A.weight           .lora_B.weight                (diffusers)
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sdpipe.errors import ModelError, UsageError
from sdpipe.loading.weight_files import find_file, header, opened, sha256

if TYPE_CHECKING:
    import torch

Given = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]
"""A LoRA as a person gives it: its file, or the file and the weight."""

MAX_WEIGHT = 20
"""Nothing is left of a model under so much of a LoRA; those made as sliders are taken up to 10."""

_KOHYA = re.compile(r"lora_(unet|te1?)_(\w+)\.(lora_down\.weight|lora_up\.weight|alpha)")
_DIFFUSERS = re.compile(
    r"(?:(unet|text_encoder)\.)?(.+?)"
    r"(?:(_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight|\.(lora_[AB])\.weight|\.(alpha))"
)
_END = re.compile(r"[._]lora(_\w+)?(\.down)?\.weight$")
_DOWN, _UP, _ALPHA = "down", "up", "alpha"
_ROLES = {
    "lora_down.weight": _DOWN,
    "lora_up.weight": _UP,
    "lora_A": _DOWN,
    "lora_B": _UP,
}
# What old files of diffusers call the projections of the text encoder.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

# A piece of a name, and what a file with such tensors is.
_OTHERS = (
    ("model.diffusion_model.", "a whole model; give it as the model"),
    ("lora_te2_", "a LoRA for Stable Diffusion XL, which has a second text encoder"),
    ("text_encoder_2.", "a LoRA for Stable Diffusion XL, which has a second text encoder"),
    ("transformer.", "a LoRA for a transformer, as those of Flux and Stable Diffusion 3 are"),
    ("double_blocks", "a LoRA for a transformer, as those of Flux and Stable Diffusion 3 are"),
    (".hada_", "a LoHa, which multiplies where a LoRA adds"),
    (".lokr_", "a LoKr, whose matrices are Kronecker products"),
    ("dora_scale", "a DoRA, which also changes the length of the weights"),
    ("lora_magnitude_vector", "a DoRA, which also changes the length of the weights"),
    (".lora_mid.", "a LoRA in Tucker's form, of three matrices"),
    ("emb_params", "a textual inversion; give it as an embedding"),
)


@dataclass(frozen=True)
class Layer:
    """One layer that a LoRA changes: its name in the file, and the tensors with their shapes.

    alpha: the name of the tensor that holds it, or the number; None is the rank.
    """

    name: str
    down: str
    up: str
    down_shape: tuple[int, ...]
    up_shape: tuple[int, ...]
    alpha: str | float | None = None

    @property
    def rank(self) -> int:
        """Rows of A, and columns of B."""
        return self.down_shape[0]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether its product has the form of weights of that shape."""
        rows, columns = shape[0], math.prod(shape[1:])
        return (
            math.prod(self.down_shape) == self.rank * columns
            and self.up_shape[:2] == (rows, self.rank)
            and math.prod(self.up_shape) == rows * self.rank
        )


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA's file, read as far as its header.

    weight: how much of it is added; 1 is as it was trained, and 0 nothing.
    layers: for "unet" and "text_encoder" the layers that it changes, by their names in the network
        with _ for every point, which is what kohya's names come down to.
    made_for: what the file says of the model that it was trained on, "" where it says nothing.
    """

    path: Path
    weight: float
    layers: Mapping[str, Mapping[str, Layer]]
    made_for: str
    label: str

    @classmethod
    def read(cls, given: Given) -> Self:
        """Reads the header of a LoRA.

        Raises:
            UsageError: the weight is no number, or one beyond `MAX_WEIGHT`.
            ModelError: there is no such file, it is damaged, or it is something else.
        """
        file, weight = given if isinstance(given, tuple) else (given, 1.0)
        label = f"lora={os.fspath(file)!r}"
        weight = check_weight(weight, label)
        path = find_file(file, label)
        notes, tensors = header(path, label)
        made_for = notes.get("ss_base_model_version") or notes.get("modelspec.architecture") or ""
        layers = _layers(tensors, _Alphas.of(notes, label), label)
        return cls(path, weight, layers, made_for, label)

    @property
    def parts(self) -> list[str]:
        """The parts of a model that it changes; none with weight 0."""
        return [part for part, layers in self.layers.items() if layers and self.weight != 0]

    def identity(self) -> dict[str, object]:
        """What tells it from others, for a picture's metadata; plain JSON types."""
        return {"name": self.path.name, "weight": self.weight, "sha256": sha256(self.path)}

    def find(self, part: str, shapes: Mapping[str, Sequence[int]], whose: str) -> dict[str, Layer]:
        """Its layers by the names of the weights that they change.

        shapes: of the tensors of the network, by their names.
        whose: how messages name the network, e.g. "the unet of model='emoji'".

        Raises:
            ModelError: the network has no such layer, or one of another shape.
        """
        flat = {
            n.removesuffix(".weight").replace(".", "_"): n for n in shapes if n.endswith(".weight")
        }
        found = {}
        for name, layer in self.layers.get(part, {}).items():
            if name not in flat:
                raise ModelError(
                    f"{self.label} does not fit {whose}, which has no layer for its "
                    f"{layer.name}; {self._remedy()}"
                )
            shape = shapes[flat[name]]
            if not layer.fits(shape):
                theirs = f"{layer.up_shape[0]} x {math.prod(layer.down_shape[1:])}"
                raise ModelError(
                    f"{self.label} does not fit {whose}: its {layer.name} changes {theirs} "
                    f"weights, and that layer has {shape[0]} x {math.prod(shape[1:])}; "
                    f"{self._remedy()}"
                )
            found[flat[name]] = layer
        return found

    def _remedy(self) -> str:
        told = f"the file says that it was made for {self.made_for}: " if self.made_for else ""
        return f"{told}take one that was made for this model, or its like."


def add(part: str, network: "torch.nn.Module", loras: Sequence[Lora], whose: str) -> None:
    """Adds LoRAs to the weights of a network; each layer is summed in float32 and rounded once.

    Raises:
        ModelError: one of them does not fit, or its file is damaged.
    """
    weights = dict(network.named_parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    with ExitStack() as stack:
        files = [
            (
                lora,
                lora.find(part, shapes, whose),
                stack.enter_context(opened(lora.path, lora.label, "pt")),
            )
            for lora in loras
            if part in lora.parts
        ]
        for name in dict.fromkeys(name for _, layers, _ in files for name in layers):
            tensor = weights[name]
            total = tensor.float()
            for lora, layers, file in files:
                if name in layers:
                    total = total + lora.weight * _product(layers[name], file, tensor)
            tensor.data = total.to(tensor.dtype)


def _product(layer: Layer, file: Any, like: "torch.Tensor") -> "torch.Tensor":
    """alpha / r * B A in float32, in the shape of the weights `like` and on their device."""
    down = file.get_tensor(layer.down).to(like.device).float().flatten(1)  # (r, in)
    up = file.get_tensor(layer.up).to(like.device).float().flatten(1)  # (out, r)
    alpha = layer.alpha
    if isinstance(alpha, str):
        alpha = float(file.get_tensor(alpha))
    scale = 1.0 if alpha is None else alpha / layer.rank
    return scale * (up @ down).reshape(like.shape)


def check_weight(weight: object, label: str) -> float:
    """A LoRA's weight. Raises UsageError where it is no number, or one beyond `MAX_WEIGHT`."""
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise UsageError(
            f"{label} has the weight {weight!r}, which is no finite number; 1 is as it was "
            "trained, 0 nothing of it."
        )
    number = float(weight)
    if not -MAX_WEIGHT <= number <= MAX_WEIGHT:
        raise UsageError(
            f"{label} has the weight {number:g}, which is out of range: -{MAX_WEIGHT} to "
            f"{MAX_WEIGHT}; 1 is as it was trained, 0 nothing of it."
        )
    return number


@dataclass(frozen=True)
class _Alphas:
    """What diffusers writes beside the tensors: alpha for a whole part, and for some layers.

    With rank-stabilised LoRAs the scale is alpha / sqrt(r) (Kalajdzievski 2023).
    """

    notes: Mapping[str, Any]

    @classmethod
    def of(cls, notes: Mapping[str, str], label: str) -> Self:
        text = notes.get("lora_adapter_metadata")
        if text is None:
            return cls({})
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("it is no object of names and values")
        except ValueError as error:
            raise ModelError(
                f"{label} has notes on its layers that are not readable ({error}); copy or "
                "download it again."
            ) from error
        return cls(values)

    def alpha(self, part: str, module: str, rank: int) -> float | None:
        patterns = self.notes.get(f"{part}.alpha_pattern") or {}
        value = self.notes.get(f"{part}.lora_alpha")
        for pattern, own in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):  # as peft matches it
                value = own
                break
        if value is None:
            return None
        return float(value) * (math.sqrt(rank) if self.notes.get(f"{part}.use_rslora") else 1)


def _layers(
    tensors: Mapping[str, tuple[int, ...]], alphas: _Alphas, label: str
) -> dict[str, dict[str, Layer]]:
    """The layers of each part, from the names of a file's tensors.

    Raises:
        ModelError: the file is not a LoRA, or one of a kind that is not read.
    """
    for piece, kind in _OTHERS:
        if name := next((name for name in tensors if piece in name), None):
            what, _, remedy = kind.partition("; ")
            remedy = remedy or "LoRAs of two matrices a layer are read, of Stable Diffusion 1 and 2"
            raise ModelError(f"{label} is {what}, as its tensor {name} tells; {remedy}.")
    roles: dict[tuple[str, str], dict[str, str]] = {}
    modules: dict[tuple[str, str], str] = {}
    for name in tensors:
        part, module, role = _read_name(name, label)
        flat = module.replace(".", "_").removeprefix("text_model_")
        roles.setdefault((part, flat), {})[role] = name
        modules[part, flat] = module
    found: dict[str, dict[str, Layer]] = {"unet": {}, "text_encoder": {}}
    for (part, flat), names in roles.items():
        if missing := [role for role in (_DOWN, _UP) if role not in names]:
            raise ModelError(
                f"{label} has {next(iter(names.values()))} but not its other matrix, {missing[0]}; "
                "copy or download it again."
            )
        down, up = tensors[names[_DOWN]], tensors[names[_UP]]
        if len(down) < 2 or len(up) < 2 or 0 in (*down, *up):
            raise ModelError(
                f"{label}: {names[_DOWN]} and {names[_UP]} have the shapes {list(down)} and "
                f"{list(up)}, and are no matrices."
            )
        stem = _END.sub("", names[_DOWN])
        alpha = names.get(_ALPHA) or alphas.alpha(part, modules[part, flat], down[0])
        found[part][flat] = Layer(stem, names[_DOWN], names[_UP], down, up, alpha)
    return found


def _read_name(name: str, label: str) -> tuple[str, str, str]:
    """Part, module and role of a tensor, by its name. Raises ModelError where it is no LoRA's."""
    if match := _KOHYA.fullmatch(name):
        part, module, role = match.groups()
        return ("unet" if part == "unet" else "text_encoder"), module, _ROLES.get(role, _ALPHA)
    if match := _DIFFUSERS.fullmatch(name.replace(".processor.", ".")):
        part, module, form, old, new, _ = match.groups()
        part = part or "unet"
        if form == "_lora":
            parent, _, last = module.rpartition(".")
            last = _OLD_TEXT.get(last, last) if part == "text_encoder" else last
            module = f"{parent}.{'to_out.0' if last == 'to_out' else last}"
        return part, module, old or _ROLES.get(new, _ALPHA)
    raise ModelError(
        f"{label} is not a LoRA that is read: its tensor {name} is none of a pair of matrices, as "
        "kohya's lora_down and lora_up or diffusers' lora_A and lora_B are."
    )
