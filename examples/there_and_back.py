"""A picture to latents, 48 times fewer numbers, and back."""

from sdpipe import Pipeline, latents_to_pil, pil_to_latents

pipe = Pipeline("emoji")
vae = pipe.components.vae
picture = pipe.generate("strawberry", seed=1).images[0]

latents = pil_to_latents(vae, picture)
numbers = picture.width * picture.height * 3
print(f"{numbers} numbers became {latents.numel()}, {numbers // latents.numel()} times fewer")
latents_to_pil(vae, latents)[0].save("there-and-back.png")
