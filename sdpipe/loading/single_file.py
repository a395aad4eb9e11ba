"""A model in a single .safetensors file, in the layout that CompVis published v1-4 in (LDM).

Such a file holds tensors and nothing else: the configurations and the tokenizer are v1-4's, from
its repository on the hub. The names are diffusers' to translate.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpipe.errors import ModelError

if TYPE_CHECKING:
    import torch

# One tensor of each part, and of what else such a file may be.
_UNET = "model.diffusion_model.input_blocks.0.0.weight"
_VAE = "first_stage_model.decoder.conv_in.weight"
_TEXT = "cond_stage_model.transformer."
_OTHERS = (
    ("cond_stage_model.model.", "a Stable Diffusion 2 model"),
    ("conditioner.embedders.", "a Stable Diffusion XL model"),
    ("double_blocks.", "a Flux model"),
    ("lora_", "a LoRA, which changes a model and is none"),
    ("down_blocks.", "a UNet alone"),
    ("decoder.", "a VAE alone"),
)


def check(path: Path, parts: tuple[str, ...], label: str) -> None:
    """Refuses a file that is not a v1 model, by the names in its header.

    parts: those that are wanted of it.

    Raises:
        ModelError: it is another kind of model, or lacks a part.
    """
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        names = set(file.keys())
        takes = file.get_slice(_UNET).get_shape()[1] if _UNET in names else 4
    for start, kind in _OTHERS:
        if any(name.startswith((start, f"model.{start}")) for name in names):
            raise ModelError(
                f"{label} is {kind}; as a single file only Stable Diffusion 1 is read. Convert it "
                "to a folder in the diffusers layout, or take another model."
            )
    if "unet" in parts and takes != 4:
        raise ModelError(
            f"{label} has a UNet of {takes} input channels, for a mask or a picture beside the "
            "noise; this pipeline draws from text alone. Take a model of 4 channels."
        )
    wanted = {"text_encoder": _TEXT, "unet": _UNET, "vae": _VAE}
    for part, start in wanted.items():
        if part in parts and not any(name.startswith(start) for name in names):
            raise ModelError(
                f"{label} holds no {part}: none of its {len(names)} tensors is called {start}...; "
                f"give that part with {part}=, or take the full file."
            )


def read(path: Path) -> dict[str, Any]:
    """Every tensor of the file, mapped from the disk and not yet read."""
    from safetensors.torch import load_file

    return load_file(path)


def build(
    part: str,
    tensors: dict[str, Any],
    folder: Path,
    device: "torch.device",
    dtype: "torch.dtype",
) -> Any:
    """One part, built of the file's tensors as the configuration in `folder` describes it."""
    if part == "text_encoder":
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel.from_pretrained(
            None,
            config=CLIPTextConfig.from_pretrained(folder, local_files_only=True),
            state_dict={
                k.removeprefix(_TEXT): v for k, v in tensors.items() if k.startswith(_TEXT)
            },
            dtype=dtype,
            device_map=device,
        )
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as ldm

    kind = AutoencoderKL if part == "vae" else UNet2DConditionModel
    config = kind.load_config(folder, local_files_only=True)
    if part == "vae":
        found = ldm.convert_ldm_vae_checkpoint(dict(tensors), config)
    else:
        # Where a file has both, v1-4 itself is the moving average of the trained weights.
        found = ldm.convert_ldm_unet_checkpoint(dict(tensors), config, extract_ema=True)
    with torch.device("meta"):
        network = kind.from_config(config)
    own = {name: tensor.to(device, dtype) for name, tensor in found.items()}
    network.load_state_dict(own, strict=False, assign=True)  # what is missing stays on meta
    return network
