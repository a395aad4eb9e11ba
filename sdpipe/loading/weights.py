"""Weights from a .safetensors file into a network, a few at a time."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

AT_ONCE = 2**25
"""Bytes of one opening of a file: what was read of it counts as memory until it is closed."""

# In files that are older than diffusers 0.17, v1-4's VAE among them.
_OLD_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def fill(
    network: "torch.nn.Module",
    path: Path,
    device: "torch.device",
    dtype: "torch.dtype",
    *,
    channels_last: bool = False,
) -> None:
    """Puts the tensors of a file into a network's parameters, on the device and in the type.

    channels_last: lay out those of convolutions so. Later it would take memory for both layouts.

    The network may have been made without memory. Tensors that it has no place for are left out;
    a place for which there is no tensor stays as it is.

    Raises:
        OSError, SafetensorError: the file cannot be read.
        ValueError: a tensor has another shape than its place.
    """
    from accelerate.utils import set_module_tensor_to_device as put
    from safetensors import safe_open
    from torch import channels_last as last
    from torch import preserve_format as kept

    places = {name for name, _ in network.named_parameters()}
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if new_name(name) in places]  # noqa: SIM118
    while names:
        read = 0
        with safe_open(path, framework="pt") as file:
            while names and read < AT_ONCE:
                name = names.pop()
                tensor = file.get_tensor(name)
                read += tensor.nbytes
                layout = last if channels_last and tensor.dim() == 4 else kept
                value = tensor.to(dtype, copy=True, memory_format=layout)
                put(network, new_name(name), device, value, dtype, clear_cache=False)
        del tensor  # it is a part of the file


def new_name(name: str) -> str:
    """What diffusers and transformers call a tensor by now."""
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name.removeprefix("text_model.")
