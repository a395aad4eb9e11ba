"""Files of weights: found, opened, told apart by their hash. Only safetensors are read."""

import hashlib
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdpipe.errors import ModelError

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "d = d.get('state_dict', d); "
    "save_file({k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, "
    "sys.argv[2])"
)
"""Python that makes a safetensors file, its second argument, of a pickle, its first."""


def find_file(value: str | os.PathLike[str], label: str, convert: str = CONVERT) -> Path:
    """Where a file that was asked for by its path is.

    label: how messages name it, e.g. "lora='a.safetensors'".
    convert: Python that makes a safetensors file of a pickle of its kind.

    Raises:
        ModelError: there is no such file, or it is no safetensors file.
    """
    path = Path(value).expanduser()
    if not os.fspath(value) or not os.path.exists(path):  # Path raises where it is no path at all
        raise ModelError(f"{label} does not exist; give the path of a .safetensors file.")
    if path.is_dir():
        raise ModelError(f"{label} is a folder; give the .safetensors file in it.")
    if path.suffix in PICKLES:
        raise ModelError(f"{label} is a pickle. " + refuse_pickle(path, None, convert))
    if path.suffix != ".safetensors":
        raise ModelError(f"{label} is no .safetensors file, and no other is read.")
    return path


def refuse_pickle(path: Path, target: Path | None, convert: str = CONVERT) -> str:
    """Why no pickle is read, and the command that makes a safetensors file of one."""
    target = target or path.with_suffix(".safetensors")
    files = f"{shlex.quote(str(path))} {shlex.quote(str(target))}"
    return (
        "Pickles can run any code when they are read, so only safetensors are. This command makes "
        f'one of it, reading nothing but tensors: python -c "{convert}" {files}'
    )


@contextmanager
def opened(path: Path, label: str, framework: str = "np") -> Iterator[Any]:
    """A file's header and, as they are asked for, its tensors; see `safetensors.safe_open`.

    framework: "np" for its header alone, without torch.

    Raises:
        ModelError: the file is damaged: a header tells how long its file has to be.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{label} is damaged or cut short ({error}); copy or download it again."
        ) from error


def header(path: Path, label: str) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """What a file's header holds: its writer's notes, and the shape of every tensor, by its name.

    Raises:
        ModelError: as `opened`.
    """
    with opened(path, label) as file:
        names = file.keys()
        found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        return file.metadata() or {}, found


def shapes(paths: Iterable[Path], label: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in some files, by its name, from their headers.

    Raises:
        ModelError: as `opened`.
    """
    return {name: shape for path in paths for name, shape in header(path, label)[1].items()}


def sha256(*paths: Path) -> str:
    """The SHA-256 of some files' bytes, one after the other."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()
