"""Draw an image, and draw it again from its file."""

from sdpipe import Pipeline

pipe = Pipeline("emoji")  # or nothing, for CompVis/stable-diffusion-v1-4
result = pipe.generate("red apple", seed=42)
result.save("red-apple.png")
print(result.settings[0])
assert pipe.replay("red-apple.png").images == result.images  # drawn again from its file
