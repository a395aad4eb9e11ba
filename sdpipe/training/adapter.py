"""The LoRA that is trained: an `Adapter` beside each layer, and the file that keeps them.

    y = W x + B A x

Hu et al. (2021), equation 3, with alpha = r. A is (r, in), random at first, and B (out, r), zero at
first: training begins with the layer as it is. In a convolution A has the kernel and B is 1 x 1.
"""

import json
import re
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from safetensors.torch import save
from torch import Tensor, nn

from sdpipe.components import Components
from sdpipe.io.files import atomic_write
from sdpipe.loading.lora_notes import SETTINGS_KEY
from sdpipe.training.modelspec import add_notes, modelspec
from sdpipe.training.run_folder import RESUME

LAYERS = re.compile(
    r"\.(to_[qkv]|to_out\.0|proj_(in|out)|ff\.net\.(0\.proj|2)|conv[12]?|conv_shortcut|time_emb_proj)$"
)
"""The layers of LCM-LoRA: those inside of the blocks, as Luo et al. (2023b) chose them."""


class Adapter(nn.Module):
    """B A of one layer, which it adds to the layer's output as a forward hook."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            places: Any = {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding")}
            self.down = nn.Conv2d(layer.in_channels, rank, **places, bias=False)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The layer's output for its inputs, with the change."""
        change: Tensor = self.up(self.down(inputs[0]))
        return output + change


def add_adapters(unet: UNet2DConditionModel, rank: int) -> dict[str, Adapter]:
    """Adds an adapter to each of a U-Net's `LAYERS`; returns them by the layers' names."""
    adapters = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and LAYERS.search(name):
            adapters[name] = Adapter(layer, rank).to(layer.weight)
            layer.register_forward_hook(adapters[name])
    return adapters


def lora_tensors(adapters: dict[str, Adapter]) -> dict[str, Tensor]:
    """The tensors of a LoRA file as diffusers names them, in float16."""
    return {
        f"unet.{name}.lora_{letter}.weight": layer.weight.detach().half().cpu().contiguous()
        for name, adapter in adapters.items()
        for letter, layer in (("A", adapter.down), ("B", adapter.up))
    }


def save_lora(
    tensors: dict[str, Tensor], settings: dict[str, Any], model: Components, path: Path
) -> None:
    """Writes a LoRA file, with the notes of `modelspec`.

    settings: those that it is to be drawn with, see `lora.Lora`.
    model: that it is for.

    Raises:
        SdpipeError: it cannot be written.
    """
    with atomic_write(path, RESUME) as file:
        file.write(save(tensors, {"format": "pt", SETTINGS_KEY: json.dumps(settings)}))
    add_notes(path, modelspec(model, path.stem, "/lora"))
