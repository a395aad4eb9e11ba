"""Encode an image to latents, 48 times fewer numbers, and decode them again."""

from PIL import ImageChops, ImageStat

from sdpipe import Pipeline, latents_to_pil, pil_to_latents

pipe = Pipeline("emoji")
vae = pipe.components.vae
image = pipe.generate("strawberry", seed=1).images[0]

latents = pil_to_latents(vae, image)
numbers = image.width * image.height * 3
print(f"{numbers} numbers became {latents.numel()}, {numbers // latents.numel()} times fewer")
back = latents_to_pil(vae, latents)[0]
back.save("there-and-back.png")

difference = ImageStat.Stat(ImageChops.difference(image, back)).mean
print("mean difference of red, green and blue, of 255:", *(f"{d:.1f}" for d in difference))
assert max(difference) < 6
