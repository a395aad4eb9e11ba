"""`Components`, the five parts of a model, and `load`, which gets them by name onto a device."""

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.device import check_device, check_dtype, pick_device, pick_dtype
from sdpipe.loading.networks import build
from sdpipe.loading.sources import Sources

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True, eq=False)
class Components:
    """A loaded model: its parts, where they are from, and what the model says of itself.

    scheduler_config: betas and the like; every run makes a scheduler of its own from it.
    name: as it was asked for; "parts" where all of them were handed over.
    folder: where it was found, or the single file; None where all parts were handed over.
    revision: the commit on the hub, None for anything else.
    defaults: the model's own settings; width and height, in pixels, are always among them.
    fallback: nothing was asked for, and this is the built-in model because v1-4 can't be had.
    variant: "fp16" where the UNet's weights are those of that variant.
    parts: what took the place of one of the model's own parts.
    weights: the files of the UNet's weights, where no commit on the hub tells what they are.
    """

    tokenizer: "CLIPTokenizer"
    text_encoder: "CLIPTextModel"
    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    scheduler_config: dict[str, Any]
    name: str
    folder: Path | None
    revision: str | None
    defaults: dict[str, Any]
    device: "torch.device"
    dtype: "torch.dtype"
    fallback: bool = False
    variant: str | None = None
    parts: dict[str, str] = field(default_factory=dict)
    weights: tuple[Path, ...] = ()

    def identity(self) -> dict[str, object]:
        """What tells this model from others, for a picture's metadata; plain JSON types.

        revision is the commit of a model from the hub; sha256, of the file of the UNet's weights,
        is for a UNet that is from elsewhere, and read at the first call. parts names those that
        were swapped.
        """
        return {
            "name": self.name,
            "revision": self.revision,
            "variant": self.variant,
            "sha256": self._sha256,
            "parts": dict(self.parts),
        }

    @cached_property
    def _sha256(self) -> str | None:
        if not self.weights:
            return None
        total = hashlib.sha256()
        for path in self.weights:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
        return total.hexdigest()


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: "str | torch.device" = "auto",
    dtype: "str | torch.dtype" = "auto",
    vae: "AutoencoderKL | str | os.PathLike[str] | None" = None,
    text_encoder: "CLIPTextModel | str | os.PathLike[str] | None" = None,
    unet: "UNet2DConditionModel | str | os.PathLike[str] | None" = None,
    tokenizer: "CLIPTokenizer | str | os.PathLike[str] | None" = None,
) -> Components:
    """Loads a model, fetching it first where it has to be.

    model: a built-in model, a folder, a .safetensors file or a hub id; see `locate.find_model`.
    vae, text_encoder, unet, tokenizer: instead of the model's own; each a loaded module, which is
        moved to `device` and `dtype`, a folder (of that part or of a model) or a hub id. A
        tokenizer comes along with a text encoder from a folder or the hub, where it has one.

    What can be told from names, headers and configurations is told before torch is imported.

    Raises:
        UsageError: an unknown or unavailable device or dtype.
        ModelError: the model or a part cannot be found, fetched or read, or they do not fit.
    """
    if isinstance(dtype, str):
        check_dtype(dtype)
    if isinstance(device, str) and device in ("auto", "cpu"):
        check_device(device)
    else:
        device = pick_device(device)  # refused before gigabytes are fetched for it
    full = str(dtype).removeprefix("torch.") == "float32"
    given = {"tokenizer": tokenizer, "text_encoder": text_encoder, "unet": unet, "vae": vae}
    sources = Sources.find(model, {k: v for k, v in given.items() if v is not None}, full=full)
    sources.check_fit()
    defaults, scheduler = sources.defaults(), sources.scheduler()

    device = pick_device(device)
    dtype = pick_dtype(dtype, device)
    parts = build(sources, device, dtype)
    base, unet_from = sources.model, sources.places.get("unet")
    from_hub = unet_from is not None and unet_from.revision is not None
    return Components(
        **parts,
        scheduler_config=scheduler,
        name="parts" if base is None else base.name,
        folder=None if base is None else base.path,
        revision=None if base is None else base.revision,
        defaults=defaults,
        device=device,
        dtype=dtype,
        fallback=base is not None and base.fallback,
        variant=None if unet_from is None else unet_from.files.variants.get("unet"),
        parts=sources.swapped,
        weights=() if from_hub else sources.weights("unet"),
    )
