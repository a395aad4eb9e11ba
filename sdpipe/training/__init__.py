"""How a model comes to be: dataset, tokenizer, VAE, text encoder, U-Net.

Read in this order: `train` (all of it) and `stages` (VAE, text encoder, U-Net, both together); then
what each stage learns, `vae` (the ELBO), `text_encoder` (regression), `ddpm` (algorithm 1 of Ho et
al.), and how, `loop` and `optimizer`. `dataset` has images, captions and random numbers,
`imagefolder` those of a folder, `tokenizer` the byte pair encoding.

`consistency` distils a trained model into a LoRA (`adapter`) that draws in a few steps.

Around them: `recipe` (every number and its rule, from `emoji.toml` or `imagefolder.toml` by
`recipe_file`, changed by `adjust`), `job` (what is asked for), `run_folder` and `samples` (what a
run writes), `model` and `networks`. `emoji/` has the images of the built-in model, `refinement/`
the stages that only it passes through.
"""
