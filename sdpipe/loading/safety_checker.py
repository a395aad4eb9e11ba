"""The safety checker that comes with v1-4: on request it flags images, and changes none.

diffusers' StableDiffusionSafetyChecker embeds an image with the vision half of CLIP and compares it
with the embeddings of 17 concepts and 3 more that make it stricter. The concepts were never
published; Rando et al. (2022), "Red-teaming the Stable Diffusion safety filter", found them out.
diffusers' own pipeline replaces a flagged image with a black one.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdpipe.loading.locate import find_checker
from sdpipe.loading.networks import quiet_libraries, read_checker
from sdpipe.runtime.modules import on_device


@dataclass(frozen=True)
class SafetyResult:
    """What the checker says of one image.

    flagged: whether it is too similar to one of the concepts.
    """

    flagged: bool

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return asdict(self)


class SafetyChecker:
    """A loaded safety checker.

    network: diffusers' StableDiffusionSafetyChecker.
    processor: resizes, crops and normalizes an image as CLIP was trained.
    device: where it runs.
    """

    def __init__(self, network: Any, processor: Any, device: torch.device) -> None:
        self._network, self._processor, self._device = network, processor, device

    def check(self, image: Image.Image) -> SafetyResult:
        """Checks one image."""
        network = self._network
        pixels = self._processor(image, return_tensors="pt").pixel_values  # (1, 3, H, W)
        unseen = np.zeros((1, 1))  # what the network blackens in place of the image
        with on_device(network, self._device), quiet_libraries():
            _, flagged = network(pixels.to(network.device, network.dtype), [unseen])
        return SafetyResult(bool(flagged[0]))


def load_checker(
    name: str,
    folder: Path | None,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    low_memory: bool = False,
) -> SafetyChecker:
    """Loads the safety checker of a model; downloads it if it is on the hub and not cached.

    It computes in float16 if the model does, else in float32: bfloat16 has two decimal digits, and
    the thresholds have three.

    name, folder, revision: see `components.ModelInfo`.
    low_memory: keep it in main memory, and on the device only while it runs.

    Raises:
        ModelError: the model has none, or it cannot be downloaded or read.
    """
    dtype = torch.float16 if dtype == torch.float16 else torch.float32
    location = find_checker(name, folder, revision, full_precision=dtype == torch.float32)
    home = torch.device("cpu") if low_memory else device
    return SafetyChecker(*read_checker(location, home, dtype), device)
