"""Checks that the parts of a model, and what is added to them, fit each other."""

import os
from collections.abc import Sequence

from sdpipe.errors import ModelError, UsageError
from sdpipe.loading.configs import CLASS_DEFAULTS, read_config
from sdpipe.loading.locate import find_checker
from sdpipe.loading.lora import Lora, LoraSpec
from sdpipe.loading.sources import Sources
from sdpipe.loading.textual_inversion import Embedding, EmbeddingSpec

_OTHER_INPUTS = {
    9: "an inpainting model, which also takes a mask and the masked image",
    8: "an editing model, which also takes the latents of an image to change",
    7: "an upscaling model, which also takes a small image",
    5: "a depth model, which also takes a depth map",
}

_KNOWN_VALUES: dict[str, dict[str, tuple[object, ...]]] = {
    # By part, the values besides None of what would change its inputs or its outputs.
    "unet": {
        "_class_name": ("UNet2DConditionModel",),
        "addition_embed_type": ("text",),
        "class_embed_type": ("text",),
        "num_class_embeds": (),
        "encoder_hid_dim_type": ("text_proj",),
        "time_cond_proj_dim": (),
    },
    "vae": {"_class_name": ("AutoencoderKL",), "shift_factor": (0,), "latents_mean": ()},
    "text_encoder": {"model_type": ("clip", "clip_text_model")},
}


def read_added(
    loras: Sequence[LoraSpec], embeddings: Sequence[EmbeddingSpec]
) -> tuple[tuple[Lora, ...], tuple[Embedding, ...]]:
    """Reads LoRAs and textual inversions as a caller lists them.

    Raises:
        UsageError: they are one name and no list; ModelError: as `Lora.read`.
    """
    for name, given in (("loras", loras), ("embeddings", embeddings)):
        is_pair = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], int | float)
        if is_pair or isinstance(given, str | os.PathLike):
            value = os.fspath(given) if isinstance(given, os.PathLike) else given
            raise UsageError(f"{name}={value!r}", "is no list", f"write {name}=[{value!r}]")
    return tuple(map(Lora.read, loras)), tuple(map(Embedding.read, embeddings))


def check_parts(sources: Sources) -> None:
    """Checks that the parts fit each other and are conditioned on text alone.

    Raises:
        ModelError: two numbers differ, or the UNet takes or gives more than latents.
    """
    unet, vae, encoder = (sources.config(part) for part in ("unet", "vae", "text_encoder"))
    channels, latent_channels = unet["in_channels"], vae["latent_channels"]
    who = sources.describe("unet")
    if channels != latent_channels and channels in _OTHER_INPUTS:
        raise ModelError(
            f"{who} with in_channels={channels}",
            f"is {_OTHER_INPUTS[channels]}",
            "take a model with in_channels=4; it can inpaint, too",
        )
    if channels != latent_channels:
        raise ModelError(
            f"{who} with in_channels={channels}",
            f"does not fit {sources.describe('vae')} with latent_channels={latent_channels}",
            "take a UNet and a VAE that were made for each other",
        )
    _check_factor(sources)
    _check_tokenizer(sources)
    if unet["out_channels"] != channels:
        raise ModelError(
            f"{who} with out_channels={unet['out_channels']} and in_channels={channels}",
            "predicts more than the noise",
            "take a model of the family of v1-4",
        )
    for part, config in (("unet", unet), ("vae", vae), ("text_encoder", encoder)):
        for name, known in _KNOWN_VALUES[part].items():
            if name == "_class_name" and part in sources.modules:
                continue  # a class of the caller's own
            if (value := config.get(name)) not in (None, *known):
                raise ModelError(
                    f"{sources.describe(part)} with {name}={value!r}",
                    "works otherwise than that of v1-4, as in Stable Diffusion XL and others",
                    "take a model of the family of v1-4",
                )
    width = unet.get("encoder_hid_dim") or unet["cross_attention_dim"]
    widths = {width} if isinstance(width, int) else set(width)
    if widths != {encoder["hidden_size"]}:
        expected = " or ".join(map(str, sorted(widths)))
        raise ModelError(
            f"{who} with cross_attention_dim={expected}",
            f"does not fit {sources.describe('text_encoder')} with "
            f"hidden_size={encoder['hidden_size']}",
            "take a UNet and a text encoder that were made for each other",
        )


def _check_factor(sources: Sources) -> None:
    """Raises ModelError if a replaced VAE has another latent size than the model's own."""
    if "vae" not in sources.replaced or (folder := sources.model_folder("vae")) is None:
        return
    assert sources.model is not None
    config = {**CLASS_DEFAULTS["vae"], **read_config(folder, "vae", sources.model.label)}
    expected = 2 ** (len(config["block_out_channels"]) - 1)
    if sources.factor != expected:
        raise ModelError(
            f"{sources.describe('vae')} with one latent for {sources.factor} x {sources.factor} "
            "pixels",
            f"does not fit the model, whose own VAE has one for {expected} x {expected}",
            "take a VAE with the same factor",
        )


def _check_tokenizer(sources: Sources) -> None:
    """Raises ModelError if the tokenizer has ids or lengths that the text encoder does not take."""
    encoder = sources.config("text_encoder")
    rows, length = encoder["vocab_size"], encoder["max_position_embeddings"]
    if (tokenizer := sources.modules.get("tokenizer")) is not None:
        needed, longest = len(tokenizer), tokenizer.model_max_length
    else:
        needed, longest = sources.tokenizer_files.rows, 0  # it is built with the right length
    if needed > rows:
        raise ModelError(
            f"the tokenizer with {needed} tokens",
            f"does not fit the text encoder, which has embeddings for {rows}",
            "take the tokenizer that belongs to it",
        )
    if longest > length:
        raise ModelError(
            f"the tokenizer with model_max_length={longest}",
            f"does not fit the text encoder, which takes {length} tokens",
            f"set its model_max_length to {length}",
        )


def check_loras(sources: Sources, loras: Sequence[Lora]) -> None:
    """Checks that the model has every layer that a LoRA changes.

    The layers of an LDM checkpoint have other names; they are checked when the LoRA is added.

    Raises:
        ModelError: a layer is missing or has another shape.
    """
    for part in ("unet", "text_encoder"):
        if loras and (shapes := sources.shapes(part)):
            for lora in loras:
                lora.find(part, shapes, sources.describe(part))


def check_embeddings(sources: Sources, embeddings: Sequence[Embedding]) -> None:
    """Checks that the text encoder takes every embedding.

    Raises:
        ModelError: one has another width or too many vectors.
    """
    config, who = sources.config("text_encoder"), sources.describe("text_encoder")
    for embedding in embeddings:
        embedding.check_fit(config["hidden_size"], config["max_position_embeddings"], who)


def check_checker(sources: Sources) -> None:
    """Checks that a local model has a safety checker; for the hub that is known when it is loaded.

    Raises:
        ModelError: it has none.
    """
    model = sources.model
    if model is not None and model.revision is None:
        find_checker(model.name, model.path, None, full_precision=False)
