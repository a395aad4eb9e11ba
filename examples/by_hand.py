"""The whole way without `Pipeline`: each stage is a function that can be called alone."""

from sdpipe import Pipeline, latents_to_pil, load
from sdpipe.denoise import denoise
from sdpipe.latents import draw_noise, make_generators
from sdpipe.prompt import encode_prompts
from sdpipe.schedule import make_scheduler

parts = load("emoji")
embeddings = encode_prompts(
    parts.tokenizer, parts.text_encoder, ["pineapple", "sunflower"], ["", ""]
)
scheduler = make_scheduler("euler", parts.scheduler_config, steps=20, device=parts.device)
x_t = draw_noise(make_generators([1, 2]), (4, 16, 16)).to(parts.device)
x_t = x_t * scheduler.init_noise_sigma

for step in denoise(parts.unet, scheduler, x_t, embeddings.cond, embeddings.uncond, g=3.0):
    x_t = step.latents
images = [latents_to_pil(parts.vae, z)[0] for z in x_t.split(1)]
for name, image in zip(["one", "two"], images, strict=True):
    image.save(f"by-hand-{name}.png")

# `Pipeline` does the same, to the bit.
pipe = Pipeline.from_components(parts, speed=False)
result = pipe.generate(["pineapple", "sunflower"], seed=1, scheduler="euler", steps=20, g=3.0)
assert images == result.images
