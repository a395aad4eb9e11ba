"""What the guidance scale does: one prompt, one seed, six values of g."""

from PIL import Image

from sdpipe import Pipeline

pipe = Pipeline("emoji")
scales = [0, 1, 2, 3, 5, 7.5]
images = [pipe.generate("panda", g=g, seed=7).images[0] for g in scales]

side = images[0].width
strip = Image.new("RGB", (side * len(images), side))
for i, image in enumerate(images):
    strip.paste(image, (side * i, 0))
strip.save("guidance.png")

# With g = 0 the prompt has no say: another one draws the same image.
assert pipe.generate("rocket", g=0, seed=7).images[0] == images[0]
