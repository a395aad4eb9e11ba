"""Draw an image. The same seed draws it again."""

from sdpipe import Pipeline

pipe = Pipeline("emoji")  # or nothing, for CompVis/stable-diffusion-v1-4
result = pipe.generate("red apple", seed=42)
result.save("red-apple.png")
print(result.settings[0])
