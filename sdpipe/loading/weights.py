"""Files of weights: how they are found, checked, read and hashed. Only safetensors are read.

`load_weights` alone needs torch: a file's header already holds the name, type and shape of every
tensor, and how long the file has to be.
"""

import hashlib
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.errors import ModelError, ModelNameError

if TYPE_CHECKING:
    import torch

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "d = d.get('state_dict', d); "
    "save_file({k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, "
    "sys.argv[2])"
)
"""Python code that converts a pickle, its first argument, to safetensors, its second."""

BYTES_PER_OPENING = 2**25
"""How much `load_weights` reads before it opens the file anew: what was read stays mapped, and
counts as memory of the process, until the file is closed."""

# In files older than diffusers 0.17, v1-4's VAE among them.
_LEGACY_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def find_file(value: str | os.PathLike[str], label: str, convert: str = CONVERT) -> Path:
    """Finds a .safetensors file by its path.

    label: how messages name it, such as "lora='a.safetensors'".
    convert: Python code that converts a pickle of its kind, see `CONVERT`.

    Raises:
        ModelNameError: there is no such file, or its name is not one of weights.
        ModelError: it is pickled.
    """
    path = Path(value).expanduser()
    if not os.fspath(value) or not os.path.exists(path):  # Path.exists may raise
        raise ModelNameError(label, "does not exist", "give the path of a .safetensors file")
    if path.is_dir():
        raise ModelNameError(label, "is a folder", "give the .safetensors file in it")
    if path.suffix in PICKLES:
        raise pickle_error(label, path, convert=convert)
    if path.suffix != ".safetensors":
        raise ModelNameError(label, "is not a .safetensors file", "no other format is read")
    return path


def pickle_error(
    label: str, path: Path, target: Path | None = None, convert: str = CONVERT
) -> ModelError:
    """The error for a pickled file; its remedy is the command that converts it to `target`."""
    files = shlex.join(map(str, (path, target or path.with_suffix(".safetensors"))))
    return ModelError(
        label,
        "is a pickle, which can run any code when it is read",
        f'convert it to safetensors with `python -c "{convert}" {files}`, which reads only tensors',
    )


@contextmanager
def open_weights(path: Path, label: str, framework: str = "np") -> Iterator[Any]:
    """Opens a file with `safetensors.safe_open`; "np" reads its header without torch.

    Raises:
        ModelError: the file is damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ModelError(
            label, f"is damaged or cut short ({error})", "copy or download it again"
        ) from error


def read_header(path: Path, label: str) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Reads a file's notes, and the shape of every tensor by its name.

    Raises:
        ModelError: the file is damaged or cut short.
    """
    with open_weights(path, label) as file:
        names = file.keys()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        return file.metadata() or {}, shapes


def read_shapes(paths: Iterable[Path], label: str) -> dict[str, tuple[int, ...]]:
    """Reads the shape of every tensor in some files, by its name.

    Raises:
        ModelError: a file is damaged or cut short.
    """
    return {name: shape for path in paths for name, shape in read_header(path, label)[1].items()}


def sha256(*paths: Path) -> str:
    """Computes the SHA-256 of the bytes of some files, one file after the other."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


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
