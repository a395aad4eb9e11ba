"""`Components`, the five parts of a model, and `load`, which gets them by name onto a device."""

import contextlib
import hashlib
import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe import single_file
from sdpipe.device import check_device, check_dtype, pick_device, pick_dtype
from sdpipe.errors import ModelError
from sdpipe.layout import STEMS
from sdpipe.sources import Sources

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
    weights: the files of the UNet's weights.
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

        revision is the commit of a model from the hub; for any other, sha256 is that of the file
        of the UNet's weights, read at the first call. parts names those that were swapped.
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
        if not self.weights or (self.revision is not None and "unet" not in self.parts):
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
    with _quiet():
        parts = _build(sources, device, dtype)
    _check_tokens(parts["tokenizer"], parts["text_encoder"])
    base, unet_from = sources.model, sources.places.get("unet")
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
        weights=sources.weights("unet"),
    )


def _build(sources: Sources, device: "torch.device", dtype: "torch.dtype") -> dict[str, Any]:
    """The tokenizer and the three networks, on the device, for inference."""
    import torch

    parts = dict(sources.modules)
    tensors: dict[str, torch.Tensor] = {}
    for part in ("tokenizer", *STEMS):
        if part in parts:
            continue
        place = sources.places[part]
        try:
            if part == "tokenizer":
                parts[part] = _tokenizer(sources)
            elif place.is_file:
                tensors = tensors or single_file.read(place.path)
                parts[part] = single_file.build(part, tensors, sources.folder(part), device, dtype)
            else:
                parts[part] = _network(part, sources, device, dtype)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{place.label}: the {part} does not fit into the memory of {device} in {dtype}; "
                "close what else uses it, or take dtype float16 or device cpu."
            ) from error
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            where = place.path if place.is_file else sources.folder(part)
            reason = " ".join(str(error).split())
            raise ModelError(
                f"{place.label}: the {part} in {where} cannot be loaded: {reason}"
            ) from error
    for part in STEMS:
        _check_complete(parts[part], part, sources)
        # A diffusers model's own `to` does the same and logs a line about types.
        torch.nn.Module.to(parts[part], device=device, dtype=dtype)
        parts[part].eval().requires_grad_(False)
    return parts


def _tokenizer(sources: Sources) -> "CLIPTokenizer":
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(sources.folder("tokenizer"), local_files_only=True)
    # Without a tokenizer_config.json there is no limit but the text encoder's.
    room = sources.config("text_encoder")["max_position_embeddings"]
    tokenizer.model_max_length = min(tokenizer.model_max_length, room)
    return tokenizer


def _network(part: str, sources: Sources, device: "torch.device", dtype: "torch.dtype") -> Any:
    """One network from a folder, read straight onto the device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    kinds = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
    network, told = kinds[part].from_pretrained(
        str(sources.folder(part)),
        dtype=dtype,
        device_map=device,
        variant=sources.places[part].files.variants[part],
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    # transformers fills what is missing at random, diffusers leaves it empty.
    if missing := sorted(told["missing_keys"]):
        raise ModelError(_lacks(sources, part, missing))
    return network


def _check_complete(network: "torch.nn.Module", part: str, sources: Sources) -> None:
    """Refuses a network with tensors that no file has filled."""
    named = itertools.chain(network.named_parameters(), network.named_buffers())
    if empty := [name for name, tensor in named if tensor.is_meta]:
        raise ModelError(_lacks(sources, part, empty))


def _lacks(sources: Sources, part: str, names: list[str]) -> str:
    where = sources.places[part].label if part in sources.places else sources.swapped[part]
    return (
        f"{where}: the {part} is incomplete: its weights lack {len(names)} of its tensors, "
        f"{names[0]} first; copy or download them again."
    )


def _check_tokens(tokenizer: "CLIPTokenizer", text_encoder: "CLIPTextModel") -> None:
    """Refuses a tokenizer that says more than the text encoder understands."""
    rows = text_encoder.config.vocab_size
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer knows {len(tokenizer)} tokens, but the text encoder has embeddings "
            f"for {rows}; take the tokenizer that belongs to it."
        )
    room = text_encoder.config.max_position_embeddings
    if tokenizer.model_max_length > room:
        raise ModelError(
            f"the tokenizer makes up to {tokenizer.model_max_length} tokens of a prompt, but the "
            f"text encoder takes {room}; set its model_max_length to that."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the log lines and bars of diffusers and transformers back while they load.

    What matters in them is found and told as errors; their settings are put back at the end.
    """
    # Importing them sets the levels of their loggers.
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    bars = diffusers_logging.is_progress_bar_enabled()
    hook = transformers_logging.set_tqdm_hook(
        lambda _, args, kwargs: transformers_logging.EmptyTqdm(*args, **kwargs)
    )
    diffusers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            diffusers_logging.enable_progress_bar()
        transformers_logging.set_tqdm_hook(hook)
