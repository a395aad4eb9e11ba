"""How a model is made: pictures, tokenizer, VAE, text encoder and U-Net.

Read in this order: the pictures and their captions (`scenes` and `glyphs` for the built-in model,
`imagefolder` for those of one's own), `tokenizer`, `vae` (the ELBO), `text` (captions that tell
their picture), `ddpm` (the training algorithm), `fit` (the loop), `train` (all of it). Around them:
`recipe` and `job` (what is asked for), `work` (files that appear whole), `model` (from and to a
folder), `samples` (what it draws meanwhile). Every number stands in `emoji.toml` and
`imagefolder.toml`, the recipes.
"""
