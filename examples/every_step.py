"""Watch the image appear: the clean image that each step predicts, side by side."""

from PIL import Image

from sdpipe import Pipeline, latents_to_pil

pipe = Pipeline("emoji")
frames = []
for step in pipe.stream("rocket", seed=3, steps=12):
    print(f"step {step.index + 1:2} of {step.total}   sigma {step.sigma:6.3f}")
    frames += latents_to_pil(pipe.components.vae, step.x0)

side = frames[0].width
strip = Image.new("RGB", (side * len(frames), side))
for i, frame in enumerate(frames):
    strip.paste(frame, (side * i, 0))
strip.save("every-step.png")
