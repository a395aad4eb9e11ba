"""How the built-in model is made: pictures, tokenizer, VAE, text encoder and U-Net.

Read in this order: `glyphs` (the pictures and their captions), `tokenizer`, `vae` (the ELBO),
`text` (captions that find their picture), `ddpm` (the training algorithm), `train` (all of it).
Every number stands in `emoji.toml`, the recipe.
"""
