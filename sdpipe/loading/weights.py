"""Files of weights: how they are found, checked, read and hashed. Only safetensors are read.

`load_weights` alone needs torch: a file's header already holds the name, type and shape of every
tensor, and how long the file has to be.
"""

import difflib
import hashlib
import os
import re
import shlex
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.errors import ModelError, ModelNameError
from sdpipe.io.content import describe_content

if TYPE_CHECKING:
    import torch

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
BYTES_PER_OPENING = 2**25
"""How much `load_weights` reads before it opens the file anew: what was read stays mapped, and
counts as memory of the process, until the file is closed."""

MAX_HEADER = 2**24
"""Bytes of a file's names, shapes and notes; those of SDXL in one file are 300,000."""

# In files older than diffusers 0.17, v1-4's VAE among them.
_LEGACY_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


BUILT_IN_LORAS = {"emoji-lcm": Path(__file__).parents[1] / "models" / "emoji-lcm.safetensors"}


def find_file(value: str | os.PathLike[str], label: str) -> Path:
    """Finds a .safetensors file by its path, or a built-in LoRA by its name.

    label: how messages name it, such as "lora='a.safetensors'".

    Raises:
        ModelNameError: there is no such file, or its name is not one of weights.
        ModelError: it is pickled.
    """
    if (built_in := BUILT_IN_LORAS.get(os.fspath(value))) is not None:
        return built_in
    path = Path(value).expanduser()
    if not os.fspath(value) or not os.path.exists(path):  # Path.exists may raise
        raise ModelNameError(label, "does not exist", _remedy(value, label))
    if path.is_dir():
        raise ModelNameError(label, "is a folder", "give the .safetensors file in it")
    check_file(path, label)
    if path.suffix in PICKLES:
        raise pickle_error(label, path)
    if path.suffix != ".safetensors":
        raise ModelNameError(label, "is not a .safetensors file", "no other format is read")
    return path


def _remedy(value: str | os.PathLike[str], label: str) -> str:
    """What to give in place of a file that is not there: a LoRA may be a built-in one."""
    remedy = "give the path of a .safetensors file"
    if not label.startswith("lora="):
        return remedy
    if near := difflib.get_close_matches(os.fspath(value), BUILT_IN_LORAS, 1):
        return f"did you mean {near[0]}? Else {remedy}"
    return f"{remedy}, or a built-in LoRA: {', '.join(BUILT_IN_LORAS)}"


def check_file(path: Path, label: str) -> None:
    """Refuses what would block a reader."""
    if not path.is_file():
        raise ModelNameError(label, "is a device or a pipe, not a file", "give a file")


def pickle_error(label: str, path: Path, target: Path | None = None) -> ModelError:
    """The error for a pickled file; its remedy is the command that converts it to `target`."""
    files = shlex.join(map(str, (path, target or path.with_suffix(".safetensors"))))
    return ModelError(
        label,
        "is a pickle, which can run any code when it is read",
        f"convert it with `python -m sdpipe.loading.convert {files}`, which reads only tensors",
    )


def damage_error(
    label: str, path: Path, error: Exception, rule: str = "is damaged or cut short"
) -> ModelError:
    """The error for a file that cannot be read.

    label: how messages name it.
    """
    if (found := describe_content(path, is_binary=path.suffix != ".json")) is not None:
        return ModelError(label, found[0], repair(path, otherwise=found[1]))
    if path.suffix == ".safetensors" and zipfile.is_zipfile(path):
        return pickle_error(label, path, path.with_stem(f"{path.stem}-converted"))
    if isinstance(error, OSError) and error.strerror:
        return ModelError(label, f"cannot be read: {error.strerror}", repair(path))
    reason = str(error).partition(". ")[0]
    reason = reason if len(reason) <= MAX_NAME else f"{reason[:MAX_NAME]} ..."
    return ModelError(label, f"{rule} ({reason})", repair(path))


def repair(*paths: Path, otherwise: str = "copy or download it again") -> str:
    """The remedy for files of one folder, one of which is damaged.

    otherwise: the remedy where they are not from the hub.

    The hub's cache keeps files as links to what was downloaded, which is what has to go.
    """
    if any(
        p.name == "snapshots" and p.parent.name.startswith("models--") for p in paths[0].parents
    ):
        names = shlex.join(str(path.resolve()) for path in paths)
        return f"delete {names}, and the next run downloads it again"
    return otherwise


@contextmanager
def open_weights(path: Path, label: str, framework: str = "np") -> Iterator[Any]:
    """Opens a file with `safetensors.safe_open`; "np" reads its header without torch.

    Raises:
        ModelError: the file is damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
        if MAX_HEADER < length < path.stat().st_size:
            rule = f"has a header of {length} bytes, and at most {MAX_HEADER} are read"
            raise ModelError(label, rule, "save it without its notes")
        with safe_open(path, framework=framework) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise damage_error(label, path, error) from error


MAX_NAME = 300
"""Characters of a tensor's name, and of a reason in a message."""

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_WEIGHT = re.compile(r"lora|\.(weight|bias|alpha)$")
_SCALE = re.compile(r"(weight_scale|scale_weight|scale_input|input_scale|SCB|absmax|quant_map)$")


def read_header(path: Path, label: str) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Reads a file's notes, and the shape of every tensor by its name.

    Raises:
        ModelError: the file is damaged or cut short, or its weights are quantised.
    """
    with open_weights(path, label) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        for name, tensor in slices.items():
            if len(name) > MAX_NAME:
                rule = f"has a tensor with a name of {len(name)} characters"
                raise ModelError(label, rule, f"take a file whose names have at most {MAX_NAME}")
            is_weight = len(slices) == 1 or _WEIGHT.search(name)
            if _SCALE.search(name) or (is_weight and tensor.get_dtype() not in FLOATS):
                raise ModelError(
                    label,
                    f"is quantised: its tensor {name} of the type {tensor.get_dtype()} shows it",
                    "take the same weights in float16, bfloat16 or float32",
                )
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
        return file.metadata() or {}, shapes


def read_shapes(paths: Iterable[Path], label: str) -> dict[str, tuple[int, ...]]:
    """Reads the shape of every tensor in some files, by its name.

    Raises:
        ModelError: a file is damaged or cut short.
    """
    return {name: shape for path in paths for name, shape in read_header(path, label)[1].items()}


def read_tensor(file: Any, name: str, path: Path, label: str) -> "torch.Tensor":
    """Reads one tensor of an opened file. Raises ModelError if a number in it is not finite."""
    tensor: torch.Tensor = file.get_tensor(name)
    if not tensor.float().isfinite().all():
        rule = f"is damaged: its tensor {name} has NaN or infinity in it"
        raise ModelError(label, rule, repair(path))
    return tensor


def check_finite(network: "torch.nn.Module", paths: Sequence[Path], who: str) -> None:
    """Checks that no weight of a network is NaN or infinite.

    paths: the files that it was read from; without any it is not checked.
    who: how messages name the network.

    Raises:
        ModelError: one is, in one of the files or once it has the network's type.
    """
    import torch

    if not paths:
        return
    weights = dict(network.named_parameters())
    # Quicker than `isfinite`. Of finite numbers that are very large, the sum may be infinite.
    sums = torch.stack([weight.sum() for weight in weights.values()])
    suspects = [n for n, fine in zip(weights, sums.isfinite().tolist(), strict=True) if not fine]
    suspects = [name for name in suspects if not weights[name].isfinite().all()]
    if not suspects:
        return
    for path in paths:
        with open_weights(path, who, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                read_tensor(file, name, path, f"{who}: {path}")
    dtype = str(weights[suspects[0]].dtype).removeprefix("torch.")
    raise ModelError(
        who,
        f"has weights that are NaN or infinite in {dtype}, {suspects[0]} first",
        "take dtype float32, or other weights",
    )


def sha256(*paths: Path) -> str:
    """Computes the SHA-256 of the bytes of some files, one file after the other."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def sha256_of_tensors(path: Path) -> str:
    """Computes the SHA-256 of the tensors of a .safetensors file, which stand behind its header.

    It stays when the notes in the header change. kohya's scripts, A1111 and civitai (as AutoV3)
    know LoRAs by it.
    """
    with path.open("rb") as file:
        file.seek(int.from_bytes(file.read(8), "little"), os.SEEK_CUR)
        return hashlib.file_digest(file, "sha256").hexdigest()


def rename_legacy_key(name: str) -> str:
    """The name that diffusers and transformers now have for a tensor."""
    for old, new in _LEGACY_NAMES.items():
        name = name.replace(old, new)
    return name.removeprefix("text_model.")


def load_weights(
    network: "torch.nn.Module",
    path: Path,
    device: "torch.device",
    dtype: "torch.dtype",
    *,
    channels_last: bool = False,
) -> None:
    """Reads the tensors of a file into the parameters of a network, a few at a time.

    The network may be on the meta device. Tensors that are not among its parameters are left out;
    parameters that the file lacks stay as they are.

    channels_last: store the weights of convolutions in this layout. Changing it later would take
        memory for both layouts.

    Raises:
        OSError, SafetensorError: the file cannot be read.
        ValueError: a tensor has another shape than its parameter.
    """
    from accelerate.utils import set_module_tensor_to_device
    from safetensors import safe_open
    from torch import channels_last as last
    from torch import preserve_format

    expected = {name for name, _ in network.named_parameters()}
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if rename_legacy_key(name) in expected]  # noqa: SIM118
    while names:
        read = 0
        with safe_open(path, framework="pt") as file:
            while names and read < BYTES_PER_OPENING:
                name = names.pop()
                tensor = file.get_tensor(name)
                read += tensor.nbytes
                layout = last if channels_last and tensor.dim() == 4 else preserve_format
                value = tensor.to(dtype, copy=True, memory_format=layout)
                set_module_tensor_to_device(
                    network, rename_legacy_key(name), device, value, dtype, clear_cache=False
                )
        del tensor  # a view of the mapped file
