"""An image does not depend on its neighbours: with batch_invariant=True, not by one bit."""

from sdpipe import Pipeline

pipe = Pipeline("emoji")
batch = pipe.generate(["cat face", "octopus", "violin"], seed=100, batch_invariant=True)
alone = pipe.generate("octopus", seed=101, batch_invariant=True)
assert batch.images[1].tobytes() == alone.images[0].tobytes()
for prompt, image in zip(["cat-face", "octopus", "violin"], batch.images, strict=True):
    image.save(f"{prompt}.png")
