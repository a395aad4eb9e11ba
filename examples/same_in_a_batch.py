"""A picture does not depend on what is drawn beside it: with exact=True, not by one bit."""

from sdpipe import Pipeline

pipe = Pipeline("emoji")
batch = pipe.generate(["cat face", "octopus", "violin"], seed=100, exact=True)
alone = pipe.generate("octopus", seed=101, exact=True)
assert batch.images[1].tobytes() == alone.images[0].tobytes()
for prompt, image in zip(["cat-face", "octopus", "violin"], batch.images, strict=True):
    image.save(f"{prompt}.png")
