"""The loop is a generator: stop it when the predicted image no longer changes."""

from sdpipe import Pipeline, latents_to_pil

pipe = Pipeline("emoji")
before = None
for step in pipe.stream("octopus on a yellow background", seed=5, steps=60):
    if before is not None and (step.x0 - before).abs().mean() < 0.013:
        break
    before = step.x0

latents_to_pil(pipe.components.vae, step.x0)[0].save("stopped-early.png")
assert step.index + 1 < step.total
print(f"stopped after step {step.index + 1} of {step.total}")
