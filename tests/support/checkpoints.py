import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def ldm_unet(name: str) -> str:
    """LDM's name of a tensor of the tiny UNet: two levels, one layer each, the first attending."""
    top = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    }
    whole, _, kind = name.rpartition(".")
    if whole in top:
        return f"{top[whole]}.{kind}"
    side, *words = name.split(".")
    block = 0 if side == "mid_block" else int(words.pop(0))
    group, layer, *rest = words
    if group == "resnets":
        rest[0] = RESNET[rest[0]]
    inner = ".".join(rest)
    number = int(group == "attentions")
    if side == "mid_block":
        return f"middle_block.{number or 2 * int(layer)}.{inner}"
    at = 2 * block + int(layer) + (side == "down_blocks")
    return f"{'input' if side == 'down_blocks' else 'output'}_blocks.{at}.{number}.{inner}"


def ldm_vae(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """LDM's name and form of a tensor of the tiny VAE, which has four levels."""
    for ours, theirs in {
        "conv_shortcut": "nin_shortcut",
        "conv_norm_out": "norm_out",
        "mid_block.attentions.0": "mid.attn_1",
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        ".resnets.": ".block.",
    }.items():
        name = name.replace(ours, theirs)
    for i in range(4):
        name = name.replace(f"down_blocks.{i}", f"down.{i}").replace(
            f"up_blocks.{i}", f"up.{3 - i}"
        )
    if "attn_1" in name:
        pairs = {
            "group_norm": "norm",
            "to_q": "q",
            "to_k": "k",
            "to_v": "v",
            "to_out.0": "proj_out",
        }
        for ours, theirs in pairs.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        if tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # LDM has convolutions of 1 x 1 there
    return name, tensor
