"""The five parts of a model, what is known of it, and `load`, which gets both onto a device."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.loading.compatibility import (
    check_embeddings,
    check_loras,
    check_parts,
    read_added,
)
from sdpipe.loading.locate import find_model, is_model_local, is_part_local, public_name
from sdpipe.loading.lora import Lora, LoraSpec
from sdpipe.loading.networks import blame_weights, build
from sdpipe.loading.single_file import check_prediction_type
from sdpipe.loading.sources import Sources, read_checkpoint
from sdpipe.loading.textual_inversion import Embedding, EmbeddingSpec
from sdpipe.loading.vocabulary import read_vocabulary
from sdpipe.loading.weights import sha256
from sdpipe.prompt.vocabulary import Vocabulary
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

    from sdpipe.loading.safety_checker import SafetyChecker


@dataclass(frozen=True)
class ModelInfo:
    """Which model was loaded: its name, where it was found, and what was changed in it.

    name: the name that was asked for; "parts" if every part was passed as a module.
    folder: the model's folder or single file; None if every part was passed as a module.
    revision: the commit on the hub; None for local models.
    variant: "fp16" if the UNet's weights are of that variant, else None.
    parts: by part, the source of each part that replaces one of the model's own.
    weights: by part, the local weight files of the UNet and of every replaced part. Parts from
        the hub are identified by their commit and not listed.
    prediction_type: "epsilon" or "v" if it was set by the caller, else None.
    loras, embeddings: what was added to the weights and to the vocabulary.
    """

    name: str
    folder: Path | None = None
    revision: str | None = None
    variant: str | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    prediction_type: str | None = None
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Identifies the model in the metadata of an image; plain JSON types, no paths.

        A model from the hub is identified by `revision`, a local one by `sha256`, the hash of the
        UNet's weights (computed at the first call). `parts` maps each replaced part to
        hub id@commit or name@sha256:hash.
        """
        return {
            "name": public_name(self.folder) if self.folder and not self.revision else self.name,
            "revision": self.revision,
            "variant": self.variant,
            "sha256": self._sha256.get("unet"),
            "prediction": self.prediction_type,
            "parts": {part: self._part_identity(part) for part in self.parts},
            "loras": [lora.identity() for lora in self.loras],
            "embeddings": [embedding.identity() for embedding in self.embeddings],
        }

    @cached_property
    def _sha256(self) -> dict[str, str]:
        return {part: sha256(*files) for part, files in self.weights.items()}

    def _part_identity(self, part: str) -> str:
        source = self.parts[part]
        return (
            f"{Path(source).name}@sha256:{self._sha256[part]}" if part in self.weights else source
        )


@dataclass(frozen=True, eq=False)
class Components:
    """A loaded model.

    scheduler_config: the noise schedule; every run makes its own scheduler from it.
    defaults: the model's own settings; always with width and height, in pixels.
    device: where the networks run. dtype: the type of their weights.
    model: which model this is.
    low_memory: the networks are on the device only while they run, see `on_device`.
    vocabulary: the words that the model was trained on, if it comes with a list of them and its
        tokenizer, text encoder and weights are its own.
    sources: where the parts come from.
    """

    tokenizer: "CLIPTokenizer"
    text_encoder: "CLIPTextModel"
    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    scheduler_config: dict[str, Any]
    defaults: dict[str, Any]
    device: "torch.device"
    dtype: "torch.dtype"
    model: ModelInfo
    low_memory: bool = False
    vocabulary: Vocabulary | None = None
    sources: Sources | None = field(default=None, repr=False)

    def blame_weights(self) -> AbstractContextManager[None]:
        """Raises ModelError for weights that are not finite, where a stage in the block is not."""
        return blame_weights(vars(self), self.sources)

    @property
    def constraints(self) -> dict[str, Any]:
        """The keyword arguments of `plan.plan` that depend on the model."""
        from sdpipe.latents import vae_factor

        return {
            "defaults": self.defaults,
            "factor": vae_factor(self.vae),
            "layers": self.text_encoder.config.num_hidden_layers,
            "read_prompt": str if self.vocabulary is None else self.vocabulary.read,
        }

    def on_device(self, network: "torch.nn.Module") -> AbstractContextManager[None]:
        """Moves a network to the device for the block; without low_memory it is there already."""
        if not self.low_memory:
            return nullcontext()
        from sdpipe.runtime.modules import on_device

        return on_device(network, self.device)

    def load_safety_checker(self) -> "SafetyChecker":
        """Loads the model's safety checker, see `safety_checker.load_checker`."""
        from sdpipe.loading.safety_checker import load_checker

        names = (self.model.name, self.model.folder, self.model.revision)
        return load_checker(*names, self.dtype, self.device, low_memory=self.low_memory)


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: "str | torch.device" = "auto",
    dtype: "str | torch.dtype" = "auto",
    vae: "AutoencoderKL | str | os.PathLike[str] | None" = None,
    text_encoder: "CLIPTextModel | str | os.PathLike[str] | None" = None,
    unet: "UNet2DConditionModel | str | os.PathLike[str] | None" = None,
    tokenizer: "CLIPTokenizer | str | os.PathLike[str] | None" = None,
    prediction_type: str | None = None,
    loras: Sequence[LoraSpec] = (),
    embeddings: Sequence[EmbeddingSpec] = (),
    low_memory: bool = False,
    for_speed: bool = False,
) -> Components:
    """Loads a model; downloads it first if it is on the hub and not cached.

    model: a built-in model, a folder, a .safetensors file or a hub id; see `locate.find_model`.
    vae, text_encoder, unet, tokenizer: replacements for the model's own parts. Each is a loaded
        module, which is moved to `device` and `dtype`, a folder (of that part or of a model) or a
        hub id; a VAE may also be a .safetensors file. A text encoder from a folder or the hub
        brings its tokenizer along if it has one.
    prediction_type: what the UNet predicts, "epsilon" or "v", for models that do not say it.
    loras: LoRA files to add, each alone (weight 1) or with its weight.
    embeddings: textual inversions to add, each alone (its word is the one in the file, else the
        file's name) or with its word. Modules that were passed are copied before a change.
    low_memory: keep the networks in main memory; each is on `device` only while it runs.
    for_speed: read weights into the memory layout that is fastest; the values are the same.

    Names, headers and configurations are checked before torch is imported; `inspect_model` does
    only that.

    Raises:
        UsageError: an unknown or unavailable device, dtype or prediction type, an invalid LoRA
            weight or embedding word, or low_memory without a GPU.
        ModelError: the model or a part is missing, damaged or cannot be fetched, or the parts do
            not fit each other.
    """
    if isinstance(dtype, str):
        check_dtype(dtype)
    if isinstance(device, str) and device in ("auto", "cpu"):
        check_device(device)
    else:
        device = pick_device(device)  # before gigabytes are downloaded for it
    if low_memory:
        device = check_low_memory(device)
    if prediction_type is not None:
        check_prediction_type(prediction_type)
    added = read_added(loras, embeddings)
    given = {"tokenizer": tokenizer, "text_encoder": text_encoder, "unet": unet, "vae": vae}
    full_precision = dtype_name(dtype) == "float32"
    sources = _find_sources(model, given, full_precision, prediction_type, *added)
    defaults, scheduler_config = sources.defaults(), sources.scheduler()
    base, replaced = sources.model, {*sources.modules, *sources.replaced}
    brings_words = not all(lora.settings for lora in added[0])  # one that was distilled does not
    is_own_language = not brings_words and not replaced & {"tokenizer", "text_encoder"}
    vocabulary = read_vocabulary(base.path, base.label) if base and is_own_language else None

    device = pick_device(device)
    dtype = pick_dtype(dtype, device)
    home = pick_device("cpu") if low_memory else device
    networks = build(sources, home, dtype, *added, for_speed=for_speed)
    return Components(
        **networks,
        scheduler_config=scheduler_config,
        defaults=defaults,
        device=device,
        dtype=dtype,
        model=_describe(sources, prediction_type, *added),
        low_memory=low_memory,
        vocabulary=vocabulary,
        sources=sources,
    )


def inspect_model(
    model: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "auto",
    vae: str | os.PathLike[str] | None = None,
    prediction_type: str | None = None,
    loras: Sequence[LoraSpec] = (),
    embeddings: Sequence[EmbeddingSpec] = (),
) -> Sources | None:
    """Checks what `load` would load with these arguments, without importing torch.

    Returns None if the model or the VAE would have to be downloaded first.

    Raises:
        UsageError, ModelError: as `load`.
    """
    full_precision = dtype == "float32"
    is_local = is_model_local(model, full_precision=full_precision) and (
        vae is None or is_part_local(vae, "vae", full_precision=full_precision)
    )
    if not is_local:
        if model is not None and os.path.isfile(Path(model).expanduser()):
            wanted = ("unet", "text_encoder") + ("vae",) * (vae is None)
            read_checkpoint(find_model(model), wanted, prediction_type)
        return None
    added = read_added(loras, embeddings)
    return _find_sources(model, {"vae": vae}, full_precision, prediction_type, *added)


def _find_sources(
    model: str | os.PathLike[str] | None,
    given: Mapping[str, Any],
    full_precision: bool,
    prediction_type: str | None,
    loras: Sequence[Lora],
    embeddings: Sequence[Embedding],
) -> Sources:
    """Finds all parts and checks that they fit each other."""
    parts = {part: value for part, value in given.items() if value is not None}
    sources = Sources.find(
        model, parts, full_precision=full_precision, prediction_type=prediction_type, loras=loras
    )
    sources.scheduler()  # reads and checks it
    check_parts(sources)
    sources.defaults()
    check_loras(sources, loras)
    check_embeddings(sources, embeddings)
    return sources


def _describe(
    sources: Sources,
    prediction_type: str | None,
    loras: tuple[Lora, ...],
    embeddings: tuple[Embedding, ...],
) -> ModelInfo:
    base, unet = sources.model, sources.locations.get("unet")
    local = {part for part, location in sources.locations.items() if location.revision is None}
    hashed = sorted(local & {"unet", *sources.replaced})
    return ModelInfo(
        name="parts" if base is None else base.name,
        folder=None if base is None else base.path,
        revision=None if base is None else base.revision,
        variant=None if unet is None else unet.files.variants.get("unet"),
        parts=sources.replaced,
        weights={part: files for part in hashed if (files := sources.weights(part))},
        prediction_type=prediction_type,
        loras=loras,
        embeddings=embeddings,
    )
