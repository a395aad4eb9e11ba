"""Builds the networks of a model on a device, complete and ready for inference."""

import contextlib
import copy
import itertools
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdpipe.errors import ModelError, NotFiniteError
from sdpipe.loading import lora, single_file, textual_inversion
from sdpipe.loading.configs import read_checker_configs
from sdpipe.loading.layout import WEIGHT_NAMES
from sdpipe.loading.locate import Location
from sdpipe.loading.lora import Lora
from sdpipe.loading.parts import read_tokenizer
from sdpipe.loading.sources import Sources
from sdpipe.loading.textual_inversion import Embedding
from sdpipe.loading.weights import check_finite, load_weights, read_header

if TYPE_CHECKING:
    import torch

_lock = threading.Lock()


def build(
    sources: Sources,
    device: "torch.device",
    dtype: "torch.dtype",
    loras: Sequence[Lora] = (),
    embeddings: Sequence[Embedding] = (),
    *,
    for_speed: bool = False,
) -> dict[str, Any]:
    """Builds the tokenizer and the three networks; returns them by name.

    for_speed: read weights into the memory order of `speed.to_channels_last`.
    loras, embeddings: added to the networks. A module that the caller passed is copied first.

    Raises:
        ModelError: a part is incomplete or cannot be read.
    """
    with quiet_libraries():
        parts = _read_parts(sources, device, dtype, embeddings, for_speed)
    changed = {part for lora_file in loras for part in lora_file.parts}
    changed |= {"tokenizer", "text_encoder"} if embeddings else set()
    for part in changed & set(sources.modules):
        parts[part] = copy.deepcopy(parts[part])
    for part in changed & {"text_encoder", "unet"}:
        lora.add(part, parts[part], loras, sources.describe(part))
    if embeddings:
        textual_inversion.add_tokens(parts["tokenizer"], embeddings)
        textual_inversion.add_vectors(parts["tokenizer"], parts["text_encoder"], embeddings)
    return parts


def _read_parts(
    sources: Sources,
    device: "torch.device",
    dtype: "torch.dtype",
    embeddings: Sequence[Embedding],
    for_speed: bool,
) -> dict[str, Any]:
    import torch

    parts = dict(sources.modules)
    for part in ("tokenizer", *WEIGHT_NAMES):
        if part == "text_encoder":  # checked before the networks, which take their time
            textual_inversion.check_tokens(parts["tokenizer"], embeddings)
        if part not in parts:
            parts[part] = _read_part(part, sources, device, dtype, for_speed)
    for part in WEIGHT_NAMES:
        _check_complete(parts[part], part, sources)
        # A diffusers model's own `to` does the same and logs a line about types.
        torch.nn.Module.to(parts[part], device=device, dtype=dtype)
        if device.type != "cpu":  # on a CPU it takes a tenth of the time of reading them
            check_finite(parts[part], sources.weights(part), sources.describe(part))
        parts[part].eval().requires_grad_(False)
    return parts


def _read_part(
    part: str, sources: Sources, device: "torch.device", dtype: "torch.dtype", for_speed: bool
) -> Any:
    import torch

    location = sources.locations[part]
    where = location.path if location.is_file else sources.folder(part)
    who = f"{location.label}: the {part} in {where}"
    try:
        if part == "tokenizer":
            return read_tokenizer(
                sources, sources.config("text_encoder")["max_position_embeddings"]
            )
        if sources.is_ldm(part):
            config = sources.config(part)
            return single_file.build(part, location.path, config, device, dtype)
        return _read_network(part, sources, device, dtype, for_speed)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{location.label}: the {part}",
            f"does not fit into the memory of {device} in {dtype}",
            "close other programs that use it, or take dtype float16 or device cpu",
        ) from error
    except NotImplementedError as error:  # a tensor on the meta device cannot be moved
        raise ModelError(
            who, "is incomplete: its weights lack tensors", "copy or download them again"
        ) from error
    except Exception as error:  # of which class depends on what the libraries stumble over
        if isinstance(error, ModelError):
            raise
        _check_shapes(part, sources, who)
        reason = " ".join(str(error).split())
        raise ModelError(who, f"cannot be loaded: {reason}") from error


def read_checker(
    location: Location, device: "torch.device", dtype: "torch.dtype"
) -> tuple[Any, Any]:
    """Reads a model's safety checker and the processor that prepares images for it.

    Raises:
        ModelError: it is incomplete or cannot be read.
    """
    folder = location.path / "safety_checker"
    who = f"{location.label}: the safety checker in {folder}"
    config, processing = read_checker_configs(location.path, location.label)
    held = 0
    for path in location.weights("safety_checker"):
        held += sum(math.prod(shape) for shape in read_header(path, who)[1].values())
    with quiet_libraries():
        # transformers' CLIPImageProcessor needs torchvision. This class computes the same.
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPConfig
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        _check_checker_size(CLIPConfig(**config), held, who)
        try:
            network, loading_info = StableDiffusionSafetyChecker.from_pretrained(
                str(folder),
                config=CLIPConfig(**config),
                attn_implementation="eager",
                dtype=dtype,
                device_map=device,
                variant=location.files.variants["safety_checker"],
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            processor = CLIPImageProcessorPil(**processing)
        except Exception as error:
            raise ModelError(who, f"cannot be loaded: {' '.join(str(error).split())}") from error
    if missing := sorted(loading_info["missing_keys"]):  # transformers fills them at random
        raise _incomplete(who, missing)
    check_finite(network, location.weights("safety_checker"), who)
    return network.eval().requires_grad_(False), processor


def _check_checker_size(config: Any, held: int, who: str) -> None:
    """Raises ModelError if a checker's configuration asks for far more than its files hold."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    with torch.device("meta"):
        network = StableDiffusionSafetyChecker(config)
    if (needed := sum(weight.numel() for weight in network.parameters())) > 2 * held:
        raise ModelError(
            who,
            f"is incomplete: it holds {held} weights, and its config.json asks for {needed}",
            "copy or download both again",
        )


def _read_network(
    part: str, sources: Sources, device: "torch.device", dtype: "torch.dtype", for_speed: bool
) -> Any:
    """Builds one network from a folder, with hardly more memory than its weights take.

    The libraries' `from_pretrained` keeps the whole file mapped until the last weight is
    converted: at the peak 1.7 times the size of v1-4's weights from float16 to bfloat16, and 3
    times from float32.
    """
    from accelerate import init_empty_weights

    from sdpipe.runtime.speed import prefers_channels_last

    with init_empty_weights(include_buffers=False):
        network = _empty_network(part, sources)
    convolves = part in ("unet", "vae")
    last = for_speed and convolves and prefers_channels_last(network, device, dtype)
    for path in sources.weights(part):
        load_weights(network, path, device, dtype, channels_last=last)
    return network


def _empty_network(part: str, sources: Sources) -> Any:
    """The network that a folder's configuration describes, without its weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    config = sources.config(part)
    if part == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**config, attn_implementation="sdpa"))
    network = AutoencoderKL if part == "vae" else UNet2DConditionModel
    return network.from_config(config)


def _check_shapes(part: str, sources: Sources, who: str) -> None:
    """Compares the shapes of tensors and configuration: the libraries' messages name no tensor."""
    import torch

    if part not in WEIGHT_NAMES or not (found := sources.shapes(part)):
        return
    try:
        with torch.device("meta"):
            network = _empty_network(part, sources)
    except Exception:
        return  # the configuration itself is wrong
    for name, tensor in network.state_dict().items():
        if name not in found:
            rule = f"is incomplete: its weights lack {name}, which its config.json asks for"
            raise ModelError(who, rule, "copy or download both again")
        if found[name] != tensor.shape:
            raise ModelError(
                who,
                f"does not fit its config.json: its tensor {name} has the shape "
                f"{list(found[name])}, not {list(tensor.shape)}",
                "take weights and configuration of the same model",
            )


@contextlib.contextmanager
def blame_weights(networks: Mapping[str, Any], sources: Sources | None) -> Iterator[None]:
    """Looks, where a stage in the block comes to NaN, whether the weights are the cause.

    Raises:
        ModelError: a weight is not finite; the message names its file.
    """
    try:
        yield
    except NotFiniteError:
        if sources is not None:
            for part in WEIGHT_NAMES:
                check_finite(networks[part], sources.weights(part), sources.describe(part))
        raise


def _check_complete(network: "torch.nn.Module", part: str, sources: Sources) -> None:
    """Raises ModelError if a tensor is still on the meta device: no file had it."""
    named = itertools.chain(network.named_parameters(), network.named_buffers())
    if missing := [name for name, tensor in named if tensor.is_meta]:
        location = sources.locations.get(part)
        where = sources.replaced[part] if location is None else location.label
        raise _incomplete(f"{where}: the {part}", missing)


def _incomplete(who: str, missing: list[str]) -> ModelError:
    return ModelError(
        who,
        f"is incomplete: its weights lack {len(missing)} of its tensors, {missing[0]} first",
        "copy or download them again",
    )


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences the logs and progress bars of diffusers and transformers inside the block.

    What matters in them is raised as an error. Their settings, which are global, are restored at
    the end; another thread waits until then.
    """
    # Importing them sets the levels of their loggers.
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    with _lock:
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
