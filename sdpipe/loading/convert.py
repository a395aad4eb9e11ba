"""Converts a pickle: `python -m sdpipe.loading.convert model.ckpt model.safetensors`.

torch reads tensors and plain containers alone. Checkpoints of PyTorch Lightning name other classes
and functions, too; a `Placeholder` stands for each, so that no code is run that a file names.
"""

import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

from sdpipe.errors import ModelError, SdpipeError
from sdpipe.io.files import atomic_write
from sdpipe.loading.weights import damage_error


class Placeholder:
    """Stands for an object of a class that is not loaded; keeps its state, and does nothing."""

    def __init__(self, *args: object) -> None:
        self.state: Any = {}

    def __setstate__(self, state: object) -> None:
        self.state = state


def make_dict(*args: object) -> dict[object, object]:
    """Stands for `collections.defaultdict`, which torch fills only if it is a plain one."""
    return {}


def convert(source: Path, target: Path) -> None:
    """Writes the tensors of a checkpoint, or the vectors of a textual inversion, to a new file.

    Raises:
        ModelError: the file is damaged, or has no tensors.
        SdpipeError: `target` cannot be written.
    """
    if target.exists():
        raise SdpipeError(str(target), "exists already", "give another name")
    import torch
    from safetensors.torch import save_file
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    try:
        names = get_unsafe_globals_in_checkpoint(source) if is_zipfile(source) else []
        known = {"collections.defaultdict": make_dict}
        with safe_globals([(known.get(name, Placeholder), name) for name in names]):
            values = torch.load(source, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # whose text advises to run the code in the file
        rule = "has objects that cannot be left out"
        raise ModelError(str(source), rule, "take the same model as .safetensors") from error
    except Exception as error:  # of which class depends on where the file is damaged
        raise damage_error(str(source), source, error) from error
    for key in ("state_dict", "string_to_param"):
        values = values.get(key, values) if isinstance(values, dict) else values
    if isinstance(values, Placeholder):  # a torch.nn.ParameterDict
        values = values.state.get("_parameters", {})
    tensors = {
        "emb_params" if name == "*" else name: tensor.detach().clone().contiguous()
        for name, tensor in values.items()
        if torch.is_tensor(tensor)
    }
    if not tensors:
        raise ModelError(str(source), "holds no tensors by their names", "take another file")
    with atomic_write(target) as file:
        save_file(tensors, file.name)  # `save` would take the memory of all of them once more


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m sdpipe.loading.convert model.ckpt model.safetensors")
    try:
        convert(*map(Path, sys.argv[1:]))
    except SdpipeError as error:
        sys.exit(f"error: {error}")
