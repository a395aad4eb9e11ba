"""Whether a model's parts fit each other, and are what the loop expects."""

from collections.abc import Mapping
from typing import Any

from sdpipe.errors import ModelError
from sdpipe.loading.sources import CLASS_DEFAULTS, Sources, read_json

_INPUTS = {
    9: "an inpainting model, which also takes a mask and the masked picture",
    8: "an editing model, which also takes the latents of a picture to change",
    7: "an upscaling model, which also takes a small picture",
    5: "a depth model, which also takes a depth map",
}


def check_fit(sources: Sources) -> None:
    """Refuses parts that do not fit each other, or that ask for more than a text.

    Raises:
        ModelError: which parts, and the numbers that differ.
    """
    unet, vae, encoder = (sources.config(part) for part in ("unet", "vae", "text_encoder"))
    takes, gives = unet["in_channels"], vae["latent_channels"]
    who = sources.who("unet")
    if takes != gives and takes in _INPUTS:
        raise ModelError(
            f"{who} has in_channels={takes}: it is {_INPUTS[takes]}. Take a model with "
            "in_channels=4, which redraws parts of a picture too."
        )
    if takes != gives:
        raise ModelError(
            f"{who} takes {takes} latent channels, but {sources.who('vae')} gives {gives}; take "
            "a UNet and a VAE that were made for each other."
        )
    _check_factor(sources, vae)
    if unet["out_channels"] != takes:
        raise ModelError(
            f"{who} has out_channels={unet['out_channels']} for in_channels={takes}: it does "
            "not predict noise alone, which is what the loop expects."
        )
    for name in ("addition_embed_type", "class_embed_type"):
        if unet.get(name) not in (None, "text"):
            raise ModelError(
                f"{who} has {name}={unet[name]!r}: it takes more than the embedding of one "
                "text, as Stable Diffusion XL does. Take a model of the family of v1-4."
            )
    wants = unet.get("encoder_hid_dim") or unet["cross_attention_dim"]
    wide = {wants} if isinstance(wants, int) else set(wants)
    if wide != {encoder["hidden_size"]}:
        raise ModelError(
            f"{who} attends to a text {' or '.join(map(str, sorted(wide)))} wide "
            f"(cross_attention_dim), but {sources.who('text_encoder')} gives "
            f"{encoder['hidden_size']} (hidden_size); take a UNet and a text encoder that "
            "were made for each other."
        )


def _check_factor(sources: Sources, vae: Mapping[str, Any]) -> None:
    """Refuses a VAE whose latents are of another size than those that a model learned."""
    if "vae" not in sources.swapped or (folder := sources.own("vae")) is None:
        return
    own = {
        **CLASS_DEFAULTS["vae"],
        **read_json(folder / "config.json", sources.model.label if sources.model else ""),
    }
    gives, learned = (2 ** (len(v["block_out_channels"]) - 1) for v in (vae, own))
    if gives != learned:
        raise ModelError(
            f"{sources.who('vae')} has one latent for {gives} x {gives} pixels, and the model's "
            f"own has one for {learned} x {learned}; take a VAE that was made like it."
        )
