"""Reading the networks of a model, straight onto a device, and all of every one of them."""

import contextlib
import copy
import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.errors import ModelError
from sdpipe.loading import lora, single_file, weights
from sdpipe.loading import textual_inversion as embedding
from sdpipe.loading.layout import STEMS
from sdpipe.loading.locate import Location
from sdpipe.loading.lora import Lora
from sdpipe.loading.sources import Sources
from sdpipe.loading.textual_inversion import Embedding

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

_one_at_a_time = threading.Lock()  # the libraries' log levels are one for the whole process


def build(
    sources: Sources,
    device: "torch.device",
    dtype: "torch.dtype",
    loras: Sequence[Lora] = (),
    embeddings: Sequence[Embedding] = (),
    *,
    for_speed: bool = False,
) -> dict[str, Any]:
    """The tokenizer and the three networks by name, on the device, for inference.

    for_speed: read weights into the layout that `speed.lay_out` gives them.
    loras, embeddings: are added. A part that was handed over stays as it was: a copy is changed.

    Raises:
        ModelError: what a part lacks, or why it cannot be read.
    """
    with _one_at_a_time, _quiet():
        parts = _read(sources, device, dtype, embeddings, for_speed)
    _check_tokens(parts["tokenizer"], parts["text_encoder"])
    changed = {part for each in loras for part in each.parts}
    changed |= {"tokenizer", "text_encoder"} if embeddings else set()
    for part in changed & set(sources.modules):
        parts[part] = copy.deepcopy(parts[part])
    for part in changed & {"text_encoder", "unet"}:
        lora.add(part, parts[part], loras, sources.who(part))
    if embeddings:
        embedding.add_tokens(parts["tokenizer"], embeddings)
        embedding.add_vectors(parts["tokenizer"], parts["text_encoder"], embeddings)
    return parts


def _read(
    sources: Sources,
    device: "torch.device",
    dtype: "torch.dtype",
    embeddings: Sequence[Embedding],
    for_speed: bool,
) -> dict[str, Any]:
    import torch

    parts = dict(sources.modules)
    files: dict[Path, dict[str, torch.Tensor]] = {}
    for part in ("tokenizer", *STEMS):
        if part == "text_encoder":  # before what takes its time
            embedding.check_tokens(parts["tokenizer"], embeddings)
        if part in parts:
            continue
        place = sources.places[part]
        try:
            if part == "tokenizer":
                parts[part] = _tokenizer(sources)
            elif place.is_file:
                if place.path not in files:
                    files[place.path] = single_file.read(place.path)
                tensors, config = files[place.path], sources.config(part)
                parts[part] = single_file.build(part, tensors, config, device, dtype)
            else:
                parts[part] = _network(part, sources, device, dtype, for_speed)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{place.label}: the {part} does not fit into the memory of {device} in {dtype}; "
                "close what else uses it, or take dtype float16 or device cpu."
            ) from error
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            where = place.path if place.is_file else sources.folder(part)
            reason = _difference(part, sources) or " ".join(str(error).split())
            raise ModelError(
                f"{place.label}: the {part} in {where} cannot be loaded: {reason}"
            ) from error
    for part in STEMS:
        _check_complete(parts[part], part, sources)
        # A diffusers model's own `to` does the same and logs a line about types.
        torch.nn.Module.to(parts[part], device=device, dtype=dtype)
        parts[part].eval().requires_grad_(False)
    return parts


def read_checker(place: Location, device: "torch.device", dtype: "torch.dtype") -> tuple[Any, Any]:
    """A model's safety checker, and what prepares pictures for it.

    Raises:
        ModelError: it can't be read.
    """
    folder = place.path / "safety_checker"
    who = f"{place.label}: the safety checker in {folder}"
    with _one_at_a_time, _quiet():
        # transformers' CLIPImageProcessor would ask for torchvision. This one computes the same.
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from safetensors import SafetensorError
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        try:
            network, told = StableDiffusionSafetyChecker.from_pretrained(
                str(folder),
                dtype=dtype,
                device_map=device,
                variant=place.files.variants["safety_checker"],
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            prepare = CLIPImageProcessorPil.from_pretrained(
                str(place.path / "feature_extractor"), local_files_only=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{who} cannot be loaded: {reason}") from error
    if missing := sorted(told["missing_keys"]):  # filled at random
        raise ModelError(_lacks(who, missing))
    return network.eval().requires_grad_(False), prepare


def _tokenizer(sources: Sources) -> "CLIPTokenizer":
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(
        sources.folder("tokenizer"), local_files_only=True, **sources.tokenizer_options()
    )
    # Without a tokenizer_config.json there is no limit but the text encoder's.
    room = sources.config("text_encoder")["max_position_embeddings"]
    tokenizer.model_max_length = min(tokenizer.model_max_length, room)
    return tokenizer


def _network(
    part: str, sources: Sources, device: "torch.device", dtype: "torch.dtype", for_speed: bool
) -> Any:
    """One network from a folder, with next to no memory beyond that of its weights.

    The libraries' own `from_pretrained` keep the whole file mapped until the last weight is
    converted, or longer: v1-4's float16 as bfloat16 takes 1.7 times its size, and from float32
    three times.
    """
    from accelerate import init_empty_weights

    from sdpipe.runtime.speed import likes_channels_last

    with init_empty_weights(include_buffers=False):
        network = _unfilled(part, sources)
    convolves = part in ("unet", "vae")
    last = for_speed and convolves and likes_channels_last(network, device, dtype)
    for path in sources.weights(part):
        weights.fill(network, path, device, dtype, channels_last=last)
    return network


def _unfilled(part: str, sources: Sources) -> Any:
    """The network that a folder's configuration describes, before it has its weights."""
    kind, folder = _kinds()[part], str(sources.folder(part))
    if part == "text_encoder":
        return kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    return kind.from_config(kind.load_config(folder, local_files_only=True))


def _kinds() -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    return {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}


def _difference(part: str, sources: Sources) -> str | None:
    """How the tensors in a folder differ from those that its configuration asks for.

    What the libraries say of that names no tensor, or advises to ignore it.
    """
    import torch

    if part not in STEMS or sources.places[part].is_file:
        return None
    there = sources.shapes(part)
    try:
        with torch.device("meta"):
            network = _unfilled(part, sources)
    except (OSError, ValueError, TypeError, RuntimeError):
        return None  # it is the configuration that is wrong
    for name, tensor in network.state_dict().items():
        if name not in there:
            return f"its weights lack the tensor {name}; copy or download them again."
        if there[name] != tensor.shape:
            return (
                f"its tensor {name} has the shape {list(there[name])}, but config.json asks for "
                f"{list(tensor.shape)}; the two are not of the same model."
            )
    return None


def _check_complete(network: "torch.nn.Module", part: str, sources: Sources) -> None:
    """Refuses a network with tensors that no file has filled."""
    named = itertools.chain(network.named_parameters(), network.named_buffers())
    if empty := [name for name, tensor in named if tensor.is_meta]:
        place = sources.places.get(part)
        where = sources.swapped[part] if place is None else place.label
        raise ModelError(_lacks(f"{where}: the {part}", empty))


def _lacks(who: str, names: list[str]) -> str:
    return (
        f"{who} is incomplete: its weights lack {len(names)} of its tensors, {names[0]} first; "
        "copy or download them again."
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
