"""Use another part: here a VAE in float32 beside a U-Net in the number type of the device.

A part is a loaded module, a folder or a hub id: vae="stabilityai/sd-vae-ft-mse", or
text_encoder="openai/clip-vit-large-patch14" for v1-4.
"""

import torch
from diffusers import AutoencoderKL

from sdpipe import Pipeline, load

folder = load("emoji").model.folder
vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
pipe = Pipeline("emoji", vae=vae)
assert pipe.components.vae.dtype == torch.float32
pipe.generate("sailboat", seed=2).save("own-vae.png")
