"""`Components`, the five parts of a model, and `load`, which gets them by name onto a device."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.loading import lora
from sdpipe.loading import textual_inversion as embedding
from sdpipe.loading.compatibility import check_fit
from sdpipe.loading.locate import find_model, is_here, is_part_here
from sdpipe.loading.lora import Lora
from sdpipe.loading.networks import build
from sdpipe.loading.single_file import check_prediction
from sdpipe.loading.sources import Sources, file_kind
from sdpipe.loading.textual_inversion import Embedding
from sdpipe.loading.weight_files import sha256
from sdpipe.prompt.vocabulary import Learned, read_learned
from sdpipe.runtime.device import (
    check_device,
    check_dtype,
    check_low_memory,
    dtype_name,
    pick_device,
    pick_dtype,
)

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
    weights: the files of the UNet's weights, and of those of `parts`, where no commit on the hub
        tells what they are.
    prediction: what the U-Net predicts, "epsilon" or "v", where a person said it.
    loras, embeddings: what was added to the weights, and to the words.
    low_memory: the networks are on the device only while they work, see `offload.at_work`.
    learned: the words that the model was told, where it keeps them and no other part or LoRA may
        know more.
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
    weights: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    prediction: str | None = None
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    low_memory: bool = False
    learned: Learned | None = None

    def identity(self) -> dict[str, Any]:
        """What tells this model from others, for a picture's metadata; plain JSON types.

        revision is the commit of a model from the hub; sha256, of the file of the UNet's weights,
        is for a UNet that is from elsewhere, and read at the first call. parts are those that
        were swapped: hub id@commit, or name@sha256:hash. loras and embeddings are told by the
        names and hashes of their files.
        """
        return {
            "name": self.name,
            "revision": self.revision,
            "variant": self.variant,
            "sha256": self._sha256.get("unet"),
            "prediction": self.prediction,
            "parts": {part: self._named(part, name) for part, name in self.parts.items()},
            "loras": [lora.identity() for lora in self.loras],
            "embeddings": [each.identity() for each in self.embeddings],
        }

    @property
    def rules(self) -> dict[str, Any]:
        """What `plan.plan` fills settings in from, and holds them against, by its names for it."""
        from sdpipe.latents import vae_factor

        return {
            "defaults": self.defaults,
            "factor": vae_factor(self.vae),
            "layers": self.text_encoder.config.num_hidden_layers,
            "stands_in": self.fallback,
        }

    def at_work(self, network: "torch.nn.Module") -> AbstractContextManager[None]:
        """Has one of the networks on the device inside of the block, where it is not always."""
        if not self.low_memory:
            return nullcontext()
        from sdpipe.runtime.modules import at_work

        return at_work(network, self.device)

    @cached_property
    def _sha256(self) -> dict[str, str]:
        return {part: sha256(*files) for part, files in self.weights.items()}

    def _named(self, part: str, name: str) -> str:
        """A part that was swapped: whose folder it was in is nobody's business."""
        return f"{Path(name).name}@sha256:{self._sha256[part]}" if part in self.weights else name


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: "str | torch.device" = "auto",
    dtype: "str | torch.dtype" = "auto",
    vae: "AutoencoderKL | str | os.PathLike[str] | None" = None,
    text_encoder: "CLIPTextModel | str | os.PathLike[str] | None" = None,
    unet: "UNet2DConditionModel | str | os.PathLike[str] | None" = None,
    tokenizer: "CLIPTokenizer | str | os.PathLike[str] | None" = None,
    prediction: str | None = None,
    loras: Sequence[lora.Given] = (),
    embeddings: Sequence[embedding.Given] = (),
    low_memory: bool = False,
    for_speed: bool = False,
) -> Components:
    """Loads a model, fetching it first where it has to be.

    model: a built-in model, a folder, a .safetensors file or a hub id; see `locate.find_model`.
    vae, text_encoder, unet, tokenizer: instead of the model's own; each a loaded module, which is
        moved to `device` and `dtype`, a folder (of that part or of a model) or a hub id, a VAE
        also a file. A tokenizer comes along with a text encoder from a folder or the hub, where
        it has one.
    prediction: what the U-Net predicts, "epsilon" or "v", where the model does not tell.
    loras: files that are added to the weights, each alone or with its weight, 1 where none is told.
    embeddings: files of textual inversions, each alone or with the word that stands for it; left
        out, that is the one in the file, else the file's name. A part that was handed over stays
        as it was, and a copy of it is changed.
    low_memory: keep the networks in the computer's own memory; `device` is where they will work.
    for_speed: read weights into the layout that `speed.lay_out` gives them; nothing else changes.

    What can be told from names, headers and configurations is told before torch is imported; `look`
    tells nothing but that.

    Raises:
        UsageError: an unknown or unavailable device, dtype or prediction, a LoRA's weight is no
            number, an embedding's word is none, or low_memory and no GPU.
        ModelError: the model or a part cannot be found, fetched or read, or they do not fit.
    """
    if isinstance(dtype, str):
        check_dtype(dtype)
    if isinstance(device, str) and device in ("auto", "cpu"):
        check_device(device)
    else:
        device = pick_device(device)  # refused before gigabytes are fetched for it
    if low_memory:
        device = check_low_memory(device)
    if prediction is not None:
        check_prediction(prediction)
    added = tuple(Lora.read(given) for given in loras)
    words = tuple(Embedding.read(given) for given in embeddings)
    given = {"tokenizer": tokenizer, "text_encoder": text_encoder, "unet": unet, "vae": vae}
    full = dtype_name(dtype) == "float32"
    sources = _found(model, given, full, prediction, added, words)
    defaults, scheduler = sources.defaults(), sources.scheduler()
    learned = _learned(sources, added)

    device = pick_device(device)
    dtype = pick_dtype(dtype, device)
    place = pick_device("cpu") if low_memory else device
    parts = build(sources, place, dtype, added, words, for_speed=for_speed)
    base, unet_from = sources.model, sources.places.get("unet")
    local = {"unet", *sources.swapped} & {
        part for part, place in sources.places.items() if place.revision is None
    }
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
        weights={part: files for part in sorted(local) if (files := sources.weights(part))},
        prediction=prediction,
        loras=added,
        embeddings=words,
        low_memory=low_memory,
        learned=learned,
    )


def look(
    model: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "auto",
    vae: str | os.PathLike[str] | None = None,
    prediction: str | None = None,
    loras: Sequence[lora.Given] = (),
    embeddings: Sequence[embedding.Given] = (),
) -> Sources | None:
    """What `load` would load of the same arguments, looked at as far as that needs no torch.

    None where the model or the VAE would have to be fetched first.

    Raises:
        UsageError, ModelError: as `load`.
    """
    full = dtype == "float32"
    if not is_here(model, full=full) or (vae is not None and not is_part_here(vae, "vae", full)):
        if model is not None and os.path.isfile(Path(model).expanduser()):
            file_kind(
                find_model(model), ("unet", "text_encoder") + ("vae",) * (vae is None), prediction
            )
        return None
    added = tuple(Lora.read(given) for given in loras)
    words = tuple(Embedding.read(given) for given in embeddings)
    return _found(model, {"vae": vae}, full, prediction, added, words)


def _learned(sources: Sources, loras: Sequence[Lora]) -> Learned | None:
    """The words that a model was told, while it listens with parts of its own."""
    model = sources.model
    others = {"tokenizer", "text_encoder"} & {*sources.modules, *sources.swapped}
    return None if model is None or others or loras else read_learned(model.path, model.label)


def _found(
    model: str | os.PathLike[str] | None,
    given: Mapping[str, Any],
    full: bool,
    prediction: str | None,
    loras: Sequence[Lora],
    embeddings: Sequence[Embedding],
) -> Sources:
    """Where everything is, once it is known that it fits together."""
    asked = {part: value for part, value in given.items() if value is not None}
    sources = Sources.find(model, asked, full=full, prediction=prediction)
    check_fit(sources)
    sources.check_loras(loras)
    sources.check_embeddings(embeddings)
    return sources
