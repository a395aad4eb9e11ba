"""Watch the image appear: the clean image that each step predicts, side by side."""

from PIL import Image, ImageChops, ImageStat

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


def difference(a: Image.Image, b: Image.Image) -> float:
    """How far two images are apart: the mean over all pixels, of 255."""
    return sum(ImageStat.Stat(ImageChops.difference(a, b)).mean) / 3


# The first steps find the form, the last ones hardly change it.
assert difference(frames[0], frames[1]) > 5 * difference(frames[-2], frames[-1])
