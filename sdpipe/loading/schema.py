"""What configurations may say: the known keys of each part, and what each value may be.

A configuration comes from a stranger. Networks and schedulers are built from what `check_config`
returns and from nothing else: transformers, for one, loads code that a key of its own names. The
bounds are wide enough for every model of the family of v1-4, and narrow enough that building one
takes no time and hardly any memory. Needs no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpipe.errors import ModelError

SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True)
class Rule:
    """What a value may be, in words and as a test."""

    text: str
    accepts: Callable[[Any], bool]


def _whole(low: int, high: int) -> Rule:
    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Rule(f"a whole number from {low} to {high}", accepts)


def _number(low: float, high: float) -> Rule:
    def accepts(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and low <= value <= high

    return Rule(f"a number from {low:g} to {high:g}", accepts)


def _one_of(*values: Any) -> Rule:
    shown = ", ".join("null" if value is None else str(value) for value in values)
    return Rule(f"one of {shown}", lambda value: any(value is v or value == v for v in values))


def _list(rule: Rule, most: int, least: int = 1) -> Rule:
    def accepts(value: Any) -> bool:
        return (
            isinstance(value, list | tuple)
            and least <= len(value) <= most
            and all(map(rule.accepts, value))
        )

    return Rule(f"a list of {least} to {most}, each {rule.text}", accepts)


def _either(*rules: Rule) -> Rule:
    return Rule(" or ".join(r.text for r in rules), lambda v: any(r.accepts(v) for r in rules))


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("a short text", lambda value: isinstance(value, str) and len(value) <= 100)
WIDTH, LAYERS, HEADS = _whole(1, 16384), _whole(1, 128), _whole(1, 1024)
SHARE, SMALL = _number(0, 1), _number(0, 0.1)
TOKEN = _whole(0, 10_000_000)
ACTIVATION = _one_of("silu", "swish", "mish", "gelu", "relu")
BLOCKS = 8  # resolutions of a network, at most
NULL = _one_of(None)

_ATTENTION_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_ATTENTION_UP = ("CrossAttnUpBlock2D", "UpBlock2D")

SIDES = {"shortest_edge", "height", "width"}


def _is_sides(value: Any) -> bool:
    return (
        isinstance(value, dict) and set(value) <= SIDES and all(map(SIDE.accepts, value.values()))
    )


SIDE = _whole(1, 4096)
SIZE = _either(SIDE, Rule(f"an object of {', '.join(sorted(SIDES))}", _is_sides))


def _per_block(rule: Rule) -> Rule:
    return _either(rule, _list(rule, BLOCKS))


_CLIP = {
    "hidden_size": WIDTH,
    "intermediate_size": _whole(1, 65536),
    "projection_dim": _whole(0, 16384),
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "hidden_act": _one_of("quick_gelu", "gelu", "gelu_new", "relu", "silu"),
    "layer_norm_eps": SMALL,
    "attention_dropout": SHARE,
    "initializer_range": _number(0, 100),
    "initializer_factor": _number(0, 100),
    "model_type": TEXT,
}

_TEXT_ENCODER = _CLIP | {
    "vocab_size": _whole(1, 10_000_000),
    "max_position_embeddings": _whole(3, 10_000),
    "pad_token_id": TOKEN,
    "bos_token_id": TOKEN,
    "eos_token_id": TOKEN,
}

_VISION = _CLIP | {
    "num_channels": _one_of(3),
    "image_size": _whole(1, 4096),
    "patch_size": _whole(1, 4096),
}

SCHEMA: Mapping[str, Mapping[str, Rule]] = {
    "unet": {
        "_class_name": TEXT,
        "_diffusers_version": TEXT,
        "sample_size": _either(_whole(1, 256), _list(_whole(1, 256), 2, 2)),
        "in_channels": _whole(1, 64),
        "out_channels": _whole(1, 64),
        "center_input_sample": FLAG,
        "flip_sin_to_cos": FLAG,
        "freq_shift": _number(-10, 10),
        "down_block_types": _list(_one_of(*_ATTENTION_DOWN), BLOCKS),
        "mid_block_type": _one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
        "up_block_types": _list(_one_of(*_ATTENTION_UP), BLOCKS),
        "only_cross_attention": _per_block(FLAG),
        "block_out_channels": _list(WIDTH, BLOCKS),
        "layers_per_block": _per_block(_whole(1, 16)),
        "downsample_padding": _whole(0, 8),
        "mid_block_scale_factor": _number(0.01, 100),
        "dropout": _number(0, 0.99),
        "act_fn": ACTIVATION,
        "norm_num_groups": WIDTH,
        "norm_eps": SMALL,
        "cross_attention_dim": _per_block(WIDTH),
        "transformer_layers_per_block": _per_block(_whole(1, 16)),
        "encoder_hid_dim": WIDTH,
        "encoder_hid_dim_type": TEXT,
        "attention_head_dim": _per_block(HEADS),
        "num_attention_heads": _per_block(HEADS),
        "dual_cross_attention": FLAG,
        "use_linear_projection": FLAG,
        "class_embed_type": TEXT,
        "addition_embed_type": TEXT,
        "addition_embed_type_num_heads": HEADS,
        "num_class_embeds": _whole(1, 1_000_000),
        "upcast_attention": FLAG,
        "resnet_time_scale_shift": _one_of("default", "scale_shift"),
        "resnet_out_scale_factor": _number(0.01, 100),
        "resnet_skip_time_act": FLAG,
        "time_embedding_type": _one_of("positional", "fourier"),
        "time_embedding_dim": WIDTH,
        "time_embedding_act_fn": ACTIVATION,
        "timestep_post_act": ACTIVATION,
        "time_cond_proj_dim": WIDTH,
        "conv_in_kernel": _one_of(1, 3, 5, 7),
        "conv_out_kernel": _one_of(1, 3, 5, 7),
        "attention_type": _one_of("default"),
        "mid_block_only_cross_attention": FLAG,
        "cross_attention_norm": _one_of("layer_norm", "group_norm", None),
    },
    "vae": {
        "_class_name": TEXT,
        "_diffusers_version": TEXT,
        "in_channels": _one_of(3),
        "out_channels": _one_of(3),
        "latent_channels": _whole(1, 64),
        "down_block_types": _list(_one_of("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), BLOCKS),
        "up_block_types": _list(_one_of("UpDecoderBlock2D", "AttnUpDecoderBlock2D"), BLOCKS),
        "block_out_channels": _list(WIDTH, BLOCKS),
        "layers_per_block": _whole(1, 16),
        "act_fn": ACTIVATION,
        "norm_num_groups": WIDTH,
        "sample_size": _either(_whole(1, 8192), _list(_whole(1, 8192), 2, 2)),
        "scaling_factor": _number(1e-4, 1e4),
        "shift_factor": _number(-1e4, 1e4),
        "latents_mean": _list(_number(-1e4, 1e4), 64),
        "latents_std": _list(_number(-1e4, 1e4), 64),
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
        "num_train_timesteps": _whole(2, 100_000),
        "beta_start": _number(1e-9, 0.999),
        "beta_end": _number(1e-9, 0.999),
        "beta_schedule": _one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
        "trained_betas": _either(_list(_number(1e-9, 0.999), 100_000, 2), NULL),
        "prediction_type": _one_of("epsilon", "v_prediction"),
        "timestep_spacing": _one_of("leading", "linspace", "trailing"),
        "timestep_type": _one_of("discrete", "continuous"),
        "steps_offset": _whole(0, 1000),
        "rescale_betas_zero_snr": FLAG,
        "set_alpha_to_one": FLAG,
        "skip_prk_steps": FLAG,
        "clip_sample": FLAG,
        "clip_sample_range": _number(0.01, 1000),
        "thresholding": FLAG,
        "dynamic_thresholding_ratio": SHARE,
        "sample_max_value": _number(0.01, 1000),
        "use_karras_sigmas": FLAG,
        "use_exponential_sigmas": FLAG,
        "use_beta_sigmas": FLAG,
        "use_flow_sigmas": _one_of(False),
        "interpolation_type": _one_of("linear", "log_linear"),
        "final_sigmas_type": _one_of("zero", "sigma_min"),
        "sigma_min": _number(0, 1000),
        "sigma_max": _number(0, 100_000),
        "algorithm_type": TEXT,
        "solver_type": TEXT,
        "solver_order": _whole(1, 4),
        "predict_x0": FLAG,
        "lower_order_final": FLAG,
        "euler_at_final": FLAG,
        "disable_corrector": _list(_whole(0, 100_000), 1000, 0),
        "variance_type": TEXT,
    },
    "tokenizer": {
        "model_max_length": _whole(3, 10**31),  # a huge number stands for none
        "auto_map": NULL,
    },
    "processor": {
        "size": SIZE,
        "crop_size": SIZE,
        "do_resize": FLAG,
        "do_center_crop": FLAG,
        "do_rescale": FLAG,
        "do_normalize": FLAG,
        "do_convert_rgb": FLAG,
        "resample": _whole(0, 5),
        "rescale_factor": SHARE,
        "image_mean": _list(SHARE, 3, 3),
        "image_std": _list(_number(0.001, 10), 3, 3),
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
            shown = repr(value)
            shown = f"{shown[:SHOWN]} ..." if len(shown) > SHOWN else shown
            raise ModelError(
                who,
                f"has {key}={shown}, which is not {rule.text}",
                "take a model of the family of v1-4",
            )
    return checked
