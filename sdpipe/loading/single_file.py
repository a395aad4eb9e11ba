"""A model in a single .safetensors file, in the layout that CompVis published v1-4 in (LDM).

Such a file holds tensors and little else: the configurations and the tokenizer are v1-4's, from its
repository on the hub, and where Stable Diffusion 2 has others, that is told by the tensors. The
names are diffusers' to translate.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sdpipe.errors import ModelError, UsageError
from sdpipe.loading.weights import new_name

if TYPE_CHECKING:
    import torch

# One tensor of each part, and of what else such a file may be.
_UNET = "model.diffusion_model.input_blocks.0.0.weight"
_VAE = "first_stage_model.decoder.conv_in.weight"
_TEXT = "cond_stage_model.transformer."
_TEXT_2 = "cond_stage_model.model."  # OpenCLIP's, in Stable Diffusion 2
_VAE_START = "first_stage_model."
_LAYER = r"transformer\.resblocks\.(\d+)\."
_OTHERS = (
    ("conditioner.embedders.", "a Stable Diffusion XL model"),
    ("double_blocks.", "a Flux model"),
    ("lora_", "a LoRA, which changes a model; give it as one, and a model beside it"),
    ("down_blocks.", "a UNet alone"),
    ("decoder.", "a VAE alone; give it as the VAE of a model"),
)
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}
"""What a U-Net may predict, as a person says it: as a scheduler's configuration does."""
Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every tensor of a file, by its name."""
_HEARD = 23  # of OpenCLIP's 24 layers Stable Diffusion 2 listens to the last but one


@dataclass(frozen=True)
class Kind:
    """What a file's header tells of the model in it.

    version: of Stable Diffusion, 1 or 2.
    prediction: one of `PREDICTIONS`; None where nothing tells.
    changes: for each part what its configuration has that is not as in v1-4's.
    """

    version: int
    prediction: str | None
    changes: Mapping[str, Mapping[str, Any]]


def check_prediction(name: str) -> None:
    """Refuses what no U-Net predicts. Raises UsageError."""
    if name not in PREDICTIONS:
        raise UsageError(
            f"prediction={name!r} is not known; a U-Net predicts {' or '.join(PREDICTIONS)}."
        )


def look(notes: Mapping[str, str], tensors: Shapes, prediction: str | None = None) -> Kind:
    """What a file's header tells, and what a person says of its prediction.

    notes, tensors: as `weight_files.header` reads them.

    The header names the prediction where its writer keeps to Stability AI's modelspec, and some
    models that predict v have a tensor called v_pred. Any other of v1 predicts the noise.
    """
    told = notes.get("modelspec.prediction_type")
    if prediction is None:
        prediction = {"epsilon": "epsilon", "v": "v", "v_prediction": "v"}.get(told or "")
    if prediction is None and "v_pred" in tensors:
        prediction = "v"
    words = tensors.get(f"{_TEXT_2}token_embedding.weight")
    if words is None:
        return Kind(1, prediction or "epsilon", {})
    layers = {m[1] for n in tensors if (m := re.match(re.escape(_TEXT_2) + _LAYER, n))}
    text: dict[str, Any] = {
        "hidden_act": "gelu",
        "vocab_size": words[0],
        "hidden_size": words[1],
        "num_attention_heads": max(1, words[1] // 64),
        "num_hidden_layers": min(len(layers), _HEARD),
    }
    if within := tensors.get(f"{_TEXT_2}transformer.resblocks.0.mlp.c_fc.weight"):
        text["intermediate_size"] = within[0]
    listens = [s for n, s in tensors.items() if n.endswith(".attn2.to_k.weight")]
    linear = [len(s) == 2 for n, s in tensors.items() if n.endswith(".proj_in.weight")]
    unet: dict[str, Any] = {"use_linear_projection": bool(linear and linear[0])}
    if listens:
        unet["cross_attention_dim"] = listens[0][1]
    return Kind(2, prediction, {"text_encoder": text, "unet": unet})


def configured(part: str, config: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """A part's configuration: v1-4's `config` with what the file's model has other."""
    changed = {**config, **kind.changes.get(part, {})}
    if part == "unet" and kind.version == 2:
        # Heads of 64 channels, where v1 has 8 heads; and those that predict v draw 768 x 768.
        changed["attention_head_dim"] = [max(1, c // 64) for c in config["block_out_channels"]]
        if kind.prediction == "v" and isinstance(config.get("sample_size"), int):
            changed["sample_size"] = config["sample_size"] * 3 // 2
    if part == "scheduler" and kind.prediction is not None:
        changed["prediction_type"] = PREDICTIONS[kind.prediction]
    return changed


def check(tensors: Shapes, parts: tuple[str, ...], kind: Kind, label: str) -> None:
    """Refuses a file that is no model of Stable Diffusion 1 or 2, by the names of its tensors.

    parts: those that are wanted of it.

    Raises:
        ModelError: it is another kind of model, lacks a part, or does not tell what it predicts.
    """
    takes = tensors[_UNET][1] if _UNET in tensors else 4
    for start, other in _OTHERS:
        if any(name.startswith((start, f"model.{start}")) for name in tensors):
            what, _, remedy = other.partition("; ")
            remedy = remedy or "convert it to a folder in the diffusers layout, or take another"
            raise ModelError(
                f"{label} is {what}, and as a single file Stable Diffusion 1 and 2 are read; "
                f"{remedy}."
            )
    if "unet" in parts and takes != 4:
        raise ModelError(
            f"{label} has a UNet of {takes} input channels, for a mask or a picture beside the "
            "noise. Take a model of 4 channels, which redraws parts of a picture too."
        )
    wanted = {"text_encoder": _TEXT_2 if kind.version == 2 else _TEXT, "unet": _UNET, "vae": _VAE}
    if not any(name.startswith(tuple(wanted.values())) for name in tensors):
        raise ModelError(
            f"{label} is no model of Stable Diffusion 1 or 2: none of its {len(tensors)} tensors "
            "has a name of theirs. Take a model in a single file, or a folder."
        )
    for part, start in wanted.items():
        if part in parts and not any(name.startswith(start) for name in tensors):
            raise ModelError(
                f"{label} holds no {part}: none of its {len(tensors)} tensors is called "
                f"{start}...; give that part with {part}=, or take the full file."
            )
    if "unet" in parts and kind.prediction is None:
        raise ModelError(
            f"{label} is a Stable Diffusion 2 model and does not tell what its U-Net predicts; say "
            "it with prediction: v for those made for 768 x 768 pixels, epsilon for those made for "
            "512 x 512, called base."
        )


def check_vae(tensors: Shapes, config: Mapping[str, Any], label: str) -> None:
    """Refuses a file that is not a VAE of the kind that a configuration describes.

    Raises:
        ModelError: it holds none, or one whose latents differ.
    """
    found = {name.removeprefix(_VAE_START): shape for name, shape in tensors.items()}
    if (first := found.get("decoder.conv_in.weight")) is None:
        raise ModelError(
            f"{label} holds no VAE: none of its {len(tensors)} tensors is called "
            "decoder.conv_in.weight. Take the file of a VAE, or the folder of one."
        )
    levels = {m[1] for name in found if (m := re.match(r"decoder\.up(?:_blocks)?\.(\d+)\.", name))}
    widths = config["block_out_channels"]
    theirs = (first[1], 2 ** (len(levels) - 1), first[0])
    ours = (config["latent_channels"], 2 ** (len(widths) - 1), widths[-1])
    if theirs != ours:
        what = "latent channels, one latent for {1} x {1} pixels, and {2} channels in the middle"
        raise ModelError(
            f"{label} has {theirs[0]} {what.format(*theirs)}; the model's own VAE has {ours[0]}, "
            f"{ours[1]} x {ours[1]} and {ours[2]}. Take one that was made for this model, or its "
            "like; a file has no configuration of its own, so a VAE of another kind is given as a "
            "folder."
        )


def read(path: Path) -> dict[str, Any]:
    """Every tensor of the file, mapped from the disk and not yet read."""
    from safetensors.torch import load_file

    return load_file(path)


def _text(tensors: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of the text encoder by the names of its class."""
    if not any(name.startswith(_TEXT_2) for name in tensors):
        return {k.removeprefix(_TEXT): v for k, v in tensors.items() if k.startswith(_TEXT)}
    from diffusers.loaders import single_file_utils as ldm

    width = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    found = ldm.convert_open_clip_checkpoint(width, dict(tensors), prefix=_TEXT_2)
    return {k: v for k, v in found.items() if k.startswith("text_model.")}


def build(
    part: str,
    tensors: dict[str, Any],
    config: Mapping[str, Any],
    device: "torch.device",
    dtype: "torch.dtype",
) -> Any:
    """One part, built of the file's tensors as its configuration describes it."""
    if part == "text_encoder":
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel.from_pretrained(
            None,
            config=CLIPTextConfig.from_dict(dict(config)),
            state_dict=_text(tensors, config),
            dtype=dtype,
            device_map=device,
        )
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as ldm

    kind = AutoencoderKL if part == "vae" else UNet2DConditionModel
    config = dict(config)
    if part == "vae" and any(name.startswith("decoder.up_blocks.") for name in tensors):
        found = {new_name(name): tensor for name, tensor in tensors.items()}
    elif part == "vae":
        found = ldm.convert_ldm_vae_checkpoint(dict(tensors), config)
    else:
        # Where a file has both, v1-4 itself is the moving average of the trained weights.
        found = ldm.convert_ldm_unet_checkpoint(dict(tensors), config, extract_ema=True)
    with torch.device("meta"):
        network = kind.from_config(config)
    own = {name: tensor.to(device, dtype) for name, tensor in found.items()}
    network.load_state_dict(own, strict=False, assign=True)  # what is missing stays on meta
    return network
