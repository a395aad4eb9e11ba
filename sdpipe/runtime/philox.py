"""The normal numbers of torch's CUDA generator, computed on the CPU.

    eps = Philox(seed).randn((1, 4, 64, 64))

Most images of other programs began with `torch.randn(shape, device="cuda")`. There each number has
a thread of its own, and thread i makes it from the seed, its number i and how many calls went
before: no state is shared, so a CPU can make the same numbers.

This holds up to as many numbers as the GPU has threads at a time (its multiprocessors times 1536 or
so): an image of 512 x 512 takes 16,384, which all but the smallest GPUs have. Beyond it thread i
goes on with number i + threads, so that the order depends on the GPU. Here every number always has
its own thread, as in A1111's "NV" generator, whose numbers these are to the bit. cuRAND computes
in float32 and with fast sines: its numbers differ from these in the sixth digit.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF
"""The lower half of 64 bits."""

UNIT = 2.0**-32
TURN = float(np.float32(UNIT * 2 * math.pi))
"""2 pi / 2^32, rounded as in cuRAND."""


class Philox:
    """A generator; each call goes on where the one before ended, as on a GPU."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.calls = 0

    def randn(self, shape: Sequence[int]) -> Tensor:
        """Draws normal numbers, float32, on the CPU."""
        counter = np.zeros((4, math.prod(shape)), np.uint64)
        counter[0] = self.calls
        counter[2] = np.arange(counter.shape[1])
        self.calls += 1
        x, y, *_ = philox(counter, (self.seed & LOW, self.seed >> 32))
        return torch.from_numpy(box_muller(x, y)).view(*shape)


class DrawFrom(TorchFunctionMode):
    """While it is open, `torch.randn` draws a batch from the `Philox` among some generators.

    One generator an image. diffusers' schedulers take torch's own generators as an argument; this
    is for the others.
    """

    def __init__(self, generators: Iterable[object]) -> None:
        super().__init__()
        self.generators = [g for g in generators if isinstance(g, Philox)]

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.randn or not self.generators:
            return func(*args, **kwargs)
        _, *shape = args[0]
        noise = torch.cat([g.randn((1, *shape)) for g in self.generators])
        return noise.to(kwargs.get("device"), kwargs.get("dtype"))


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox 4x32-10 (Salmon et al. 2011, section 3.3): counters to 32 random bits each.

    counter: (4, N), uint64 with values below 2^32; the result is likewise.
    """
    a, b, c, d = counter
    for i in range(ROUNDS):
        k_0, k_1 = ((k + i * step) & LOW for k, step in zip(key, KEY_STEPS, strict=True))
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (q >> 32) ^ b ^ k_0, q & LOW, (p >> 32) ^ d ^ k_1, p & LOW
    return np.stack([a, b, c, d])


def box_muller(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Normal numbers, float32, from two series of 32 random bits (Box and Muller 1958).

    The radius from x, the angle from y, each in the middle of its interval, as in cuRAND, which
    uses the sine of the angle first.
    """
    u, angle = x * UNIT + UNIT / 2, y * TURN + TURN / 2
    return (np.sqrt(-2 * np.log(u)) * np.sin(angle)).astype(np.float32)
