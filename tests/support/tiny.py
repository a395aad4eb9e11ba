"""A Stable Diffusion small enough to make in a test: v1-4's five parts and layout, random weights.

`tiny_model(folder)` writes it. sdpipe opens it, and so does diffusers' StableDiffusionPipeline.
The weights are the same for the same arguments, on every machine.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 16  # of the text encoder, and what the UNet attends to
LENGTH = 77  # tokens, v1-4's
WORDS = ("a", "red", "green", "blue", "cat", "dog", "apple", "photo", "of", "on")


def write_tokenizer(folder: Path, *, length: int = LENGTH) -> CLIPTokenizer:
    """Writes the four files of v1-4's tokenizer, with the bytes and `WORDS` as vocabulary."""
    symbols = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    symbols += [chr(256 + c) for c in range(256 - len(symbols))]
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = word[0]
        for i, letter in enumerate(word[1:], 2):
            pair = (left, letter + "</w>" * (i == len(word)))
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            left = "".join(pair)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    assert len(vocabulary) == len(tokens)

    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        **special,
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    _write_json(folder / "vocab.json", vocabulary)
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", config)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    assert len(tokenizer) == len(tokens)
    return tokenizer


def tiny_text_encoder(
    vocabulary: int, *, width: int = WIDTH, length: int = LENGTH
) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModel(config)


def tiny_unet(*, size: int = 32, width: int = WIDTH, **changes: object) -> UNet2DConditionModel:
    config = {
        "sample_size": size // 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": width,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**config, **changes})


def tiny_vae(*, size: int = 32, **changes: object) -> AutoencoderKL:
    """Four levels as in v1-4: 8 pixels a side to one latent."""
    config = {
        "sample_size": size,
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    return AutoencoderKL(**{**config, **changes})


def tiny_model(
    folder: Path | str,
    *,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    size: int = 32,
    seed: int = 0,
) -> Path:
    """Writes a complete model that draws `size` x `size` images (a multiple of 8); its folder.

    variant="fp16" puts `.fp16` into the names of the weights' files; `dtype` is what they hold.
    Called twice on one folder, it adds the second variant beside the first.
    """
    folder = Path(folder)
    tokenizer = write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = tiny_text_encoder(len(tokenizer))
        unet = tiny_unet(size=size)
        vae = tiny_vae(size=size)
    text_encoder.config.save_pretrained(folder / "text_encoder")
    unet.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    # Hugging Face's files hold CLIP's text model under `text_model.`, a name from older versions.
    write_weights(folder / "text_encoder/model", text_encoder, variant, dtype, "text_model.")
    write_weights(folder / "unet/diffusion_pytorch_model", unet, variant, dtype)
    write_weights(folder / "vae/diffusion_pytorch_model", vae, variant, dtype)
    _write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "PNDMScheduler",
            "_diffusers_version": "0.7.0.dev0",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
            "clip_sample": False,
        },
    )
    _write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.2.2",
            "requires_safety_checker": False,
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    return folder


def write_weights(
    stem: Path, part: torch.nn.Module, variant: str | None, dtype: torch.dtype, prefix: str = ""
) -> None:
    tensors = {prefix + key: value.to(dtype) for key, value in part.state_dict().items()}
    suffix = ".safetensors" if variant is None else f".{variant}.safetensors"
    save_file(tensors, stem.with_name(stem.name + suffix), metadata={"format": "pt"})


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
