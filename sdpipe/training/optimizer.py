"""What takes the steps: Muon for the matrices inside a network, AdamW for all other weights.

Muon (Jordan et al. 2024) makes the singular values of each step's matrix about equal, so that what
is rarely said is learned as fast as what often is: a model of many names, each seen a few times,
needs fewer steps. After 200 of them the built-in model's U-Net had a loss of 0.385 where AdamW
alone had left 0.420, and after 250 its text encoder one of 0.341 where AdamW had left 0.408.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdpipe.runtime.device import pick_dtype

# The first layers and the last, and those of the time embedding: there AdamW suits better.
OUTER = {"conv_in", "conv_out", "read", "time_embedding", "time_emb_proj", "add_embedding"}


def make_optimizers(
    model: nn.Module, learning_rate: float, muon_rate: float
) -> dict[str, torch.optim.Optimizer]:
    """The optimizers of a model's learning weights, by name; without a `muon_rate` only AdamW.

    Muon's rate is scaled so that its steps are as large as AdamW's at the same rate (Liu et al.
    2025, equation 4).
    """
    inner = [
        layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and layer.weight.requires_grad
        and not OUTER.intersection(name.split("."))
    ]
    inner = inner if muon_rate else []
    taken = {id(weight) for weight in inner}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(rest, learning_rate, weight_decay=0.01, fused=True)
    }
    if inner:
        optimizers["muon"] = FlatMuon(inner, muon_rate)
    return optimizers


class FlatMuon(torch.optim.Muon):
    """torch's Muon for weights of any shape: a convolution's (O, I, 3, 3) counts as (O, 9 I).

    torch multiplies in bfloat16, which most CPUs only imitate. There it is float32 instead: of a
    step of the built-in model's U-Net Muon took 12 s of 14 on two AVX2 cores, and takes 0.3 of 2.
    """

    def __init__(self, weights: Sequence[Tensor], rate: float) -> None:
        self.weights = weights
        self.flat = [nn.Parameter(w.detach().view(len(w), -1)) for w in weights]  # share memory
        super().__init__(self.flat, rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        self._imitates = pick_dtype("auto", self.flat[0].device) == torch.float32

    def step(self, closure: Any = None) -> Any:
        """Takes one step, and returns what `closure` computes, where there is one."""
        loss = None if closure is None else closure()
        for weight, flat in zip(self.weights, self.flat, strict=True):
            flat.grad = None if weight.grad is None else weight.grad.reshape(flat.shape)
        if not self._imitates:
            super().step()
            return loss
        for group in self.param_groups:
            for flat in group["params"]:
                if flat.grad is not None:
                    self._move(flat, flat.grad, group)
        return loss

    @torch.no_grad()
    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """torch's formula; the update has the size of AdamW's (Liu et al. 2025, equation 4)."""
        state, rate, momentum = self.state[weight], group["lr"], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = orthogonalized(gradient.lerp(mean, momentum), group["ns_coefficients"])
        weight.mul_(1 - rate * group["weight_decay"])
        weight.add_(update, alpha=-0.2 * rate * math.sqrt(max(weight.shape)))


def orthogonalized(matrix: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    """A matrix (n, m) with its singular values brought near to 1, in its own number type.

    Five steps of X <- a X + (b A + c A A) X with A = X Xᵀ (Newton and Schulz), from X of norm 1: a
    singular value s becomes a s + b s³ + c s⁵ each time, and nothing else changes.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
