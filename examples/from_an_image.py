"""Begin with an image: change it, redraw a part of it, extend it beyond its edges."""

from PIL import Image, ImageDraw

from sdpipe import Pipeline

pipe = Pipeline("emoji")
prompt = "red apple on a blue background"
apple = pipe.generate(prompt, seed=42, steps=20).images[0]  # or the path of a file
same = {"init_image": apple, "seed": 1, "steps": 20}

mask = Image.new("L", apple.size)  # where it stays black, not one bit changes
ImageDraw.Draw(mask).rectangle((48, 0, 127, 47), fill="white")

results = {
    "changed": pipe.generate("green apple on a blue background", strength=0.6, **same),
    "in-part": pipe.generate(prompt, mask_image=mask, **same),
    "grown": pipe.generate(prompt, outpaint=(16, 16, 16, 0), **same),
}
for name, result in results.items():
    result.save(f"apple-{name}.png")

kept = (0, 48, 128, 128)  # left, top, right, bottom: where the mask is black
assert results["in-part"].images[0].crop(kept).tobytes() == apple.crop(kept).tobytes()
assert results["grown"].images[0].size == (apple.width + 32, apple.height + 16)
