"""The safety checker that comes with v1-4: asked to, it marks a picture, and changes none.

The vision half of CLIP turns the picture into an embedding z. Where its cosine with the embedding
c_k of one of 17 concepts is beyond the threshold of that concept,

    cos(z, c_k) - threshold_k + stricter > 0,

rounded to three digits, the picture is flagged. `stricter` is 0.01 where the same holds of one of
three more concepts, and else 0. This is diffusers' StableDiffusionSafetyChecker, which returns a
black picture. Which concepts they are was never published: Rando et al. (2022), "Red-teaming the
Stable Diffusion safety filter", found that out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sdpipe.loading.locate import find_checker
from sdpipe.loading.networks import read_checker
from sdpipe.runtime.modules import at_work

if TYPE_CHECKING:
    from sdpipe.components import Components

STRICTER = 0.01


@dataclass(frozen=True)
class Mark:
    """What the checker says of one picture.

    concepts: the numbers of those it comes too near to, from 0.
    """

    concepts: tuple[int, ...]

    @property
    def flagged(self) -> bool:
        """Whether there is one."""
        return bool(self.concepts)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {"flagged": self.flagged, "concepts": list(self.concepts)}


class Checker:
    """A loaded safety checker.

    network: diffusers' StableDiffusionSafetyChecker.
    prepare: brings pictures to the size and the numbers that it was trained on.
    device: where it works.
    """

    def __init__(self, network: Any, prepare: Any, device: torch.device) -> None:
        self._network, self._prepare, self._device = network, prepare, device

    @torch.no_grad()
    def look(self, image: Image.Image) -> Mark:
        """Looks at one picture."""
        net = self._network
        with at_work(net, self._device):
            pixels = self._prepare(image, return_tensors="pt").pixel_values  # (1, 3, H, W)
            seen = net.vision_model(pixels.to(net.device, net.dtype))[1]
            z = net.visual_projection(seen)  # (1, D)
            care = _beyond(z, net.special_care_embeds, net.special_care_embeds_weights, 0)
            stricter = STRICTER if care else 0
            return Mark(_beyond(z, net.concept_embeds, net.concept_embeds_weights, stricter))


def load_checker(parts: "Components") -> Checker:
    """The safety checker of a loaded model, on its device; fetched now, where it has to be.

    It computes in the model's number type, but not in bfloat16: that has two digits, and the
    thresholds have three.

    Raises:
        ModelError: the model has none, or it can't be fetched or read.
    """
    dtype = torch.float16 if parts.dtype == torch.float16 else torch.float32
    full = dtype == torch.float32
    model = parts.model
    place = find_checker(model.name, model.folder, model.revision, full_precision=full)
    home = torch.device("cpu") if parts.low_memory else parts.device
    return Checker(*read_checker(place, home, dtype), parts.device)


def _beyond(z: Tensor, concepts: Tensor, thresholds: Tensor, stricter: float) -> tuple[int, ...]:
    """Which concepts, (K, D), are nearer to z, (1, D), than their thresholds, (K,), allow."""
    cosines: Sequence[float] = cosine_similarity(z, concepts).float().tolist()
    over = (c - t + stricter for c, t in zip(cosines, thresholds.tolist(), strict=True))
    return tuple(k for k, score in enumerate(over) if round(score, 3) > 0)
