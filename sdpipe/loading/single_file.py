"""Single .safetensors checkpoints of Stable Diffusion 1 and 2, in the LDM layout of CompVis.

Such a file has tensors and no configurations. Those are v1-4's, from its repository on the hub;
where Stable Diffusion 2 differs, the tensors tell. The header alone says which model it is, so a
file is checked without importing torch. diffusers renames the tensors of the UNet and the VAE; it
has no public function for a text encoder alone, so those are renamed here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sdpipe.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every tensor of a file, by its name."""

PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction"}
"""From our names of what a UNet predicts to those of a scheduler's configuration."""

_UNET = "model.diffusion_model.input_blocks.0.0.weight"
_VAE = "first_stage_model."
_TEXT = "cond_stage_model.transformer."  # Stable Diffusion 1: CLIP by transformers' names
_TEXT_2 = "cond_stage_model.model."  # Stable Diffusion 2: OpenCLIP
_TEXT_2_LAYER = r"transformer\.resblocks\.(\d+)\."
_SD2_TEXT_LAYERS = 23  # Stable Diffusion 2 leaves out the last of OpenCLIP's 24 layers
_OPEN_CLIP_NAMES = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.": "embeddings.token_embedding.",
    "ln_final.": "final_layer_norm.",
    "transformer.resblocks.": "encoder.layers.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.": ".self_attn.",
}
_OTHER_KINDS = {  # by how a tensor's name begins: what the file is, and what to do with it
    "conditioner.embedders.": ("a Stable Diffusion XL model", "take a model of the family of v1-4"),
    "double_blocks.": ("a Flux model", "take a model of the family of v1-4"),
    "lora_": ("a LoRA, which changes a model", "pass it as a LoRA, beside a model"),
    "down_blocks.": ("a UNet without the other parts", "take the full checkpoint"),
    "decoder.": ("a VAE without the other parts", "pass it as the VAE of a model"),
}


@dataclass(frozen=True)
class CheckpointInfo:
    """What the header of a checkpoint says of the model in it.

    version: of Stable Diffusion, 1 or 2.
    prediction_type: a key of `PREDICTION_TYPES`; None if it is unknown.
    config_changes: by part, the values in which its configuration differs from v1-4's.
    """

    version: int
    prediction_type: str | None
    config_changes: Mapping[str, Mapping[str, Any]]


def check_prediction_type(name: str) -> None:
    """Raises UsageError for a name that is not in `PREDICTION_TYPES`."""
    if name not in PREDICTION_TYPES:
        raise UsageError(
            f"prediction_type={name!r}", "is unknown", f"use {' or '.join(PREDICTION_TYPES)}"
        )


def read_info(
    notes: Mapping[str, str], tensors: Shapes, prediction_type: str | None = None
) -> CheckpointInfo:
    """Reads the kind of a model from the header of its file.

    notes, tensors: see `weights.read_header`.
    prediction_type: set by the caller. Otherwise it is that of Stability AI's modelspec in the
        header, or v if there is a tensor called v_pred, or epsilon for Stable Diffusion 1.
    """
    if prediction_type is None:
        names = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()} | {"v": "v"}
        prediction_type = names.get(notes.get("modelspec.prediction_type", ""))
    if prediction_type is None and "v_pred" in tensors:
        prediction_type = "v"
    embeddings = tensors.get(f"{_TEXT_2}token_embedding.weight")
    if embeddings is None:
        return CheckpointInfo(1, prediction_type or "epsilon", {})
    pattern = re.compile(re.escape(_TEXT_2) + _TEXT_2_LAYER)
    layers = {match[1] for name in tensors if (match := pattern.match(name))}
    text_encoder: dict[str, Any] = {
        "hidden_act": "gelu",
        "vocab_size": embeddings[0],
        "hidden_size": embeddings[1],
        "num_attention_heads": max(1, embeddings[1] // 64),
        "num_hidden_layers": min(len(layers), _SD2_TEXT_LAYERS),
    }
    if mlp := tensors.get(f"{_TEXT_2}transformer.resblocks.0.mlp.c_fc.weight"):
        text_encoder["intermediate_size"] = mlp[0]
    keys = [shape for name, shape in tensors.items() if name.endswith(".attn2.to_k.weight")]
    inputs = [shape for name, shape in tensors.items() if name.endswith(".proj_in.weight")]
    unet: dict[str, Any] = {"use_linear_projection": bool(inputs) and len(inputs[0]) == 2}
    if keys:
        unet["cross_attention_dim"] = keys[0][1]
    return CheckpointInfo(2, prediction_type, {"text_encoder": text_encoder, "unet": unet})


def adapt_config(part: str, config: Mapping[str, Any], info: CheckpointInfo) -> dict[str, Any]:
    """A part's configuration: v1-4's `config` with the values of the checkpoint."""
    adapted = {**config, **info.config_changes.get(part, {})}
    if part == "unet" and info.version == 2:
        # Heads of 64 channels, where version 1 has 8 heads. Those that predict v are of 768 x 768.
        adapted["attention_head_dim"] = [max(1, c // 64) for c in config["block_out_channels"]]
        if info.prediction_type == "v" and isinstance(config.get("sample_size"), int):
            adapted["sample_size"] = config["sample_size"] * 3 // 2
    if part == "scheduler" and info.prediction_type is not None:
        adapted["prediction_type"] = PREDICTION_TYPES[info.prediction_type]
    return adapted


def check_checkpoint(
    tensors: Shapes, parts: tuple[str, ...], info: CheckpointInfo, label: str
) -> None:
    """Checks by the names of its tensors that a file is of Stable Diffusion 1 or 2 and has `parts`.

    Raises:
        ModelError: otherwise, or if it does not say what its UNet predicts.
    """
    for start, (kind, remedy) in _OTHER_KINDS.items():
        if any(name.startswith((start, f"model.{start}")) for name in tensors):
            raise ModelError(label, f"is {kind}, not a Stable Diffusion 1 or 2 checkpoint", remedy)
    channels = tensors[_UNET][1] if _UNET in tensors else 4
    if "unet" in parts and channels != 4:
        raise ModelError(
            label,
            f"has a UNet with {channels} input channels, for a mask or an image beside the noise",
            "take a model with 4 input channels; it can inpaint, too",
        )
    text = _TEXT_2 if info.version == 2 else _TEXT
    starts = {"text_encoder": text, "unet": _UNET, "vae": f"{_VAE}decoder.conv_in.weight"}
    missing = {p: s for p, s in starts.items() if not any(n.startswith(s) for n in tensors)}
    if len(missing) == len(starts):
        raise ModelError(
            label,
            f"is not a Stable Diffusion 1 or 2 checkpoint: none of its {len(tensors)} tensors has "
            "a name of theirs",
            "take a checkpoint with all parts, or a folder",
        )
    for part, start in missing.items():
        if part in parts:
            raise ModelError(
                label,
                f"has no {part}: none of its {len(tensors)} tensors has a name that begins with "
                f"{start}",
                f"pass that part as {part}=, or take the full checkpoint",
            )
    if "unet" in parts and info.prediction_type is None:
        raise ModelError(
            label,
            "is a Stable Diffusion 2 checkpoint and does not say what its UNet predicts",
            "set the prediction type: v for models made for 768 x 768 pixels, epsilon for the "
            "base models, made for 512 x 512",
        )


def check_vae(tensors: Shapes, config: Mapping[str, Any], label: str) -> None:
    """Checks by shapes that a file has a VAE which a configuration describes.

    Raises:
        ModelError: otherwise.
    """
    found = {name.removeprefix(_VAE): shape for name, shape in tensors.items()}
    if (first := found.get("decoder.conv_in.weight")) is None:
        raise ModelError(
            label,
            f"has no VAE: none of its {len(tensors)} tensors is called decoder.conv_in.weight",
            "take the file or the folder of a VAE",
        )
    levels = {m[1] for name in found if (m := re.match(r"decoder\.up(?:_blocks)?\.(\d+)\.", name))}
    widths = config["block_out_channels"]
    theirs = (first[1], 2 ** (len(levels) - 1), first[0])
    expected = (config["latent_channels"], 2 ** (len(widths) - 1), widths[-1])
    if theirs != expected:
        describe = "{0} latent channels, one latent for {1} x {1} pixels and {2} inner channels"
        raise ModelError(
            label,
            f"has {describe.format(*theirs)}; the model's own VAE has {describe.format(*expected)}",
            "take a VAE that was made for this model, or pass one of another kind as a folder, "
            "which has a configuration",
        )


def is_ldm_layout(tensors: Shapes) -> bool:
    """Whether the VAE of a file has LDM's names, not those of diffusers."""
    return not any(name.startswith("decoder.up_blocks.") for name in tensors)


def build(
    part: str,
    path: Path,
    config: Mapping[str, Any],
    device: "torch.device",
    dtype: "torch.dtype",
) -> Any:
    """Builds one network from a checkpoint in the LDM layout.

    config: its configuration, by the names of its class.

    Raises:
        OSError, SafetensorError: the file cannot be read.
        ValueError: a tensor has another shape than in the configuration.
        NotImplementedError: a tensor of the UNet or the VAE is missing. One that is missing in
            the text encoder is left on the meta device.
    """
    if part == "text_encoder":
        return _build_text_encoder(path, config, device, dtype)
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with TemporaryDirectory() as folder:  # diffusers takes the configuration from a folder only
        (Path(folder) / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        return (AutoencoderKL if part == "vae" else UNet2DConditionModel).from_single_file(
            str(path),
            config=folder,
            local_files_only=True,
            device=device,
            dtype=dtype,
            **({"extract_ema": True} if part == "unet" else {}),  # v1-4 itself is the average
        )


def _build_text_encoder(
    path: Path, config: Mapping[str, Any], device: "torch.device", dtype: "torch.dtype"
) -> Any:
    from accelerate import init_empty_weights
    from safetensors import safe_open
    from transformers import CLIPTextConfig, CLIPTextModel

    with init_empty_weights(include_buffers=False):
        network = CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))
    expected, tensors = network.state_dict(), {}
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith((_TEXT, _TEXT_2))]  # noqa: SIM118
        for name in names:
            for ours, tensor in _rename_text_tensor(name, file.get_tensor(name)).items():
                if ours in expected:
                    tensors[ours] = tensor.to(device, dtype, copy=True)
    network.load_state_dict(tensors, strict=False, assign=True)
    return network


def _rename_text_tensor(name: str, tensor: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    """A text encoder's tensor by transformers' name; q, k and v, one tensor in OpenCLIP, apart."""
    if name.startswith(_TEXT):
        return {name.removeprefix(_TEXT).removeprefix("text_model."): tensor}
    name = name.removeprefix(_TEXT_2)
    for theirs, ours in _OPEN_CLIP_NAMES.items():
        name = name.replace(theirs, ours)
    stem, found, kind = name.partition("in_proj_")
    if not found:
        return {name: tensor}
    return dict(zip((f"{stem}{x}_proj.{kind}" for x in "qkv"), tensor.chunk(3), strict=True))
