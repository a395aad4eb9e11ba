"""By how much an image changes when others are drawn beside it, in each number type.

    python benchmarks/batch_effect.py [--model emoji] [--dtypes float32 bfloat16]

Draws the same (prompt, seed) alone and in a batch of eight, and records the largest and the mean
difference of the 8-bit values. With batch_invariant=True there is none, which is recorded too.
Writes batch_effect.json beside this file.
"""

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch

from sdpipe import Pipeline

PROMPTS = ["red apple", "panda", "rocket on a blue background", "crab"] * 2


def differences(pipe: Pipeline, exact: bool) -> dict[str, float]:
    batch = pipe.generate(PROMPTS, seed=0, batch_invariant=exact).images
    largest, means = 0, []
    for k, prompt in enumerate(PROMPTS):
        alone = pipe.generate(prompt, seed=k, batch_invariant=exact).images[0]
        difference = np.abs(np.asarray(alone).astype(int) - np.asarray(batch[k]).astype(int))
        largest = max(largest, int(difference.max()))
        means.append(float(difference.mean()))
    return {"largest": largest, "mean": round(float(np.mean(means)), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    results = {}
    for dtype in options.dtypes:
        pipe = Pipeline(options.model, dtype=dtype)
        results[dtype] = {
            "batch": differences(pipe, batch_invariant=False),
            "exact": differences(pipe, batch_invariant=True),
        }
        print(dtype, results[dtype], flush=True)
    report = {
        "model": pipe.components.model.identity(),
        "device": str(pipe.components.device),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "of_255": results,
    }
    path = Path(__file__).with_name("batch_effect.json")
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
