"""What configurations may say: the known keys of each part, and what each value may be.

A configuration comes from a stranger. Networks and schedulers are built from what `check_config`
returns and from nothing else: transformers, for one, loads code that a key of its own names. The
bounds are wide enough for every model of the family of v1-4, and narrow enough that building one
takes no time and hardly any memory. Needs no torch.
"""

from collections.abc import Mapping
from typing import Any

from sdpipe.errors import ModelError
from sdpipe.loading.rules import (
    FLAG,
    ID,
    MARK,
    MARKS,
    MAX_NAMES,
    NUMBERED_TOKEN,
    TEXT,
    Rule,
    are_numbered,
    are_short_texts,
    either,
    list_of,
    number,
    one_of,
    shorten,
    whole,
)

WIDTH, LAYERS, HEADS = whole(1, 16384), whole(1, 128), whole(1, 1024)
SHARE, SMALL = number(0, 1), number(0, 0.1)
ACTIVATION = one_of("silu", "swish", "mish", "gelu", "relu")
MAX_WORDS = 50_000  # that a model knows
BLOCKS = 8  # resolutions of a network, at most
NULL = one_of(None)

_ATTENTION_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_ATTENTION_UP = ("CrossAttnUpBlock2D", "UpBlock2D")

SIDES = {"shortest_edge", "height", "width"}


def _is_sides(value: Any) -> bool:
    return (
        isinstance(value, dict) and set(value) <= SIDES and all(map(SIDE.accepts, value.values()))
    )


SIDE = whole(1, 4096)
SIZE = either(SIDE, Rule(f"an object of {', '.join(sorted(SIDES))}", _is_sides))


def _per_block(rule: Rule) -> Rule:
    return either(rule, list_of(rule, BLOCKS))


_CLIP = {
    "hidden_size": WIDTH,
    "intermediate_size": whole(1, 65536),
    "projection_dim": whole(0, 16384),
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "hidden_act": one_of("quick_gelu", "gelu", "gelu_new", "relu", "silu"),
    "layer_norm_eps": SMALL,
    "attention_dropout": SHARE,
    "initializer_range": number(0, 100),
    "initializer_factor": number(0, 100),
    "model_type": TEXT,
}

_TEXT_ENCODER = _CLIP | {
    "vocab_size": whole(1, 10_000_000),
    "max_position_embeddings": whole(3, 10_000),
    "pad_token_id": ID,
    "bos_token_id": ID,
    "eos_token_id": ID,
}

_VISION = _CLIP | {
    "num_channels": one_of(3),
    "image_size": whole(1, 4096),
    "patch_size": whole(1, 4096),
}

SCHEMA: Mapping[str, Mapping[str, Rule]] = {
    "unet": {
        "_class_name": TEXT,
        "_diffusers_version": TEXT,
        "sample_size": either(whole(1, 256), list_of(whole(1, 256), 2, 2)),
        "in_channels": whole(1, 64),
        "out_channels": whole(1, 64),
        "center_input_sample": FLAG,
        "flip_sin_to_cos": FLAG,
        "freq_shift": number(-10, 10),
        "down_block_types": list_of(one_of(*_ATTENTION_DOWN), BLOCKS),
        "mid_block_type": one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
        "up_block_types": list_of(one_of(*_ATTENTION_UP), BLOCKS),
        "only_cross_attention": _per_block(FLAG),
        "block_out_channels": list_of(WIDTH, BLOCKS),
        "layers_per_block": _per_block(whole(1, 16)),
        "downsample_padding": whole(0, 8),
        "mid_block_scale_factor": number(0.01, 100),
        "dropout": number(0, 0.99),
        "act_fn": ACTIVATION,
        "norm_num_groups": WIDTH,
        "norm_eps": SMALL,
        "cross_attention_dim": _per_block(WIDTH),
        "transformer_layers_per_block": _per_block(whole(1, 16)),
        "encoder_hid_dim": WIDTH,
        "encoder_hid_dim_type": TEXT,
        "attention_head_dim": _per_block(HEADS),
        "num_attention_heads": _per_block(HEADS),
        "dual_cross_attention": FLAG,
        "use_linear_projection": FLAG,
        "class_embed_type": TEXT,
        "addition_embed_type": TEXT,
        "addition_embed_type_num_heads": HEADS,
        "num_class_embeds": whole(1, 1_000_000),
        "upcast_attention": FLAG,
        "resnet_time_scale_shift": one_of("default", "scale_shift"),
        "resnet_out_scale_factor": number(0.01, 100),
        "resnet_skip_time_act": FLAG,
        "time_embedding_type": one_of("positional", "fourier"),
        "time_embedding_dim": WIDTH,
        "time_embedding_act_fn": ACTIVATION,
        "timestep_post_act": ACTIVATION,
        "time_cond_proj_dim": WIDTH,
        "conv_in_kernel": one_of(1, 3, 5, 7),
        "conv_out_kernel": one_of(1, 3, 5, 7),
        "attention_type": one_of("default"),
        "mid_block_only_cross_attention": FLAG,
        "cross_attention_norm": one_of("layer_norm", "group_norm", None),
    },
    "vae": {
        "_class_name": TEXT,
        "_diffusers_version": TEXT,
        "in_channels": one_of(3),
        "out_channels": one_of(3),
        "latent_channels": whole(1, 64),
        "down_block_types": list_of(one_of("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), BLOCKS),
        "up_block_types": list_of(one_of("UpDecoderBlock2D", "AttnUpDecoderBlock2D"), BLOCKS),
        "block_out_channels": list_of(WIDTH, BLOCKS),
        "layers_per_block": whole(1, 16),
        "act_fn": ACTIVATION,
        "norm_num_groups": WIDTH,
        "sample_size": either(whole(1, 8192), list_of(whole(1, 8192), 2, 2)),
        "scaling_factor": number(1e-4, 1e4),
        "shift_factor": number(-1e4, 1e4),
        "latents_mean": list_of(number(-1e4, 1e4), 64),
        "latents_std": list_of(number(-1e4, 1e4), 64),
        "force_upcast": FLAG,
        "use_quant_conv": FLAG,
        "use_post_quant_conv": FLAG,
        "mid_block_add_attention": FLAG,
    },
    "text_encoder": _TEXT_ENCODER,
    "checker_text": _TEXT_ENCODER,
    "checker_vision": _VISION,
    "scheduler": {
        "_class_name": TEXT,
        "_diffusers_version": TEXT,
        "num_train_timesteps": whole(2, 100_000),
        "beta_start": number(1e-9, 0.999),
        "beta_end": number(1e-9, 0.999),
        "beta_schedule": one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
        "trained_betas": either(list_of(number(1e-9, 0.999), 100_000, 2), NULL),
        "prediction_type": one_of("epsilon", "v_prediction"),
        "timestep_spacing": one_of("leading", "linspace", "trailing"),
        "timestep_type": one_of("discrete", "continuous"),
        "steps_offset": whole(0, 1000),
        "rescale_betas_zero_snr": FLAG,
        "set_alpha_to_one": FLAG,
        "skip_prk_steps": FLAG,
        "clip_sample": FLAG,
        "clip_sample_range": number(0.01, 1000),
        "thresholding": FLAG,
        "dynamic_thresholding_ratio": SHARE,
        "sample_max_value": number(0.01, 1000),
        "use_karras_sigmas": FLAG,
        "use_exponential_sigmas": FLAG,
        "use_beta_sigmas": FLAG,
        "use_flow_sigmas": one_of(False),
        "interpolation_type": one_of("linear", "log_linear"),
        "final_sigmas_type": one_of("zero", "sigma_min"),
        "sigma_min": number(0, 1000),
        "sigma_max": number(0, 100_000),
        "algorithm_type": TEXT,
        "solver_type": TEXT,
        "solver_order": whole(1, 4),
        "predict_x0": FLAG,
        "lower_order_final": FLAG,
        "euler_at_final": FLAG,
        "disable_corrector": list_of(whole(0, 100_000), 1000, 0),
        "variance_type": TEXT,
        "original_inference_steps": one_of(50),
        "timestep_scaling": one_of(10.0),
    },
    "words.json": {
        "names": list_of(TEXT, MAX_NAMES, 0),
        "words": list_of(TEXT, MAX_WORDS, 0),
        "glyphs": Rule(f"an object of at most {MAX_NAMES} short texts", are_short_texts),
    },
    "model_index.json": {"_class_name": TEXT},
    "tokenizer.json": {"added_tokens": list_of(NUMBERED_TOKEN, 100_000, 0)},
    "tokenizer_config.json": {
        **dict.fromkeys(MARKS, MARK),
        # a huge number stands for none
        "model_max_length": Rule("a whole number, 3 or more", lambda v: type(v) is int and v >= 3),
        "added_tokens_decoder": Rule("an object of ids, each with a token", are_numbered),
    },
    "special_tokens_map.json": dict.fromkeys(MARKS, MARK),
    "processor": {
        "size": SIZE,
        "crop_size": SIZE,
        "do_resize": FLAG,
        "do_center_crop": FLAG,
        "do_rescale": FLAG,
        "do_normalize": FLAG,
        "do_convert_rgb": FLAG,
        "resample": whole(0, 5),
        "rescale_factor": SHARE,
        "image_mean": list_of(SHARE, 3, 3),
        "image_std": list_of(number(0.001, 10), 3, 3),
    },
}
"""By part, the known keys and their rules; what else a configuration has is left out."""


def check_config(values: Mapping[str, Any], part: str, who: str) -> dict[str, Any]:
    """The known keys of a part's configuration; null is left out where it stands for nothing.

    who: how messages name the file.

    Raises:
        ModelError: a value breaks its rule.
    """
    checked = {}
    for key, rule in SCHEMA[part].items():
        value = values.get(key)
        if rule.accepts(value) and key in values:
            checked[key] = value
        elif value is not None:
            raise ModelError(
                who,
                f"has {key}={shorten(value)}, which is not {rule.text}",
                "take a model of the family of v1-4",
            )
    return checked
