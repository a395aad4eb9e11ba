"""What is taken for something else: how likely it is, and drawing more of what still is."""

import torch
import torch.nn.functional as F
from torch import Tensor


def logits(said: Tensor, meant: Tensor, own: Tensor, alike: Tensor, near: Tensor) -> Tensor:
    """For which of `meant`, (M, D), each of `said`, (B, D), is taken.

    They are the logits, (B, M), of

        p(j | i) = softmax_j(-|said_i - meant_j|^2 / near).

    Those that are `alike`, (B, M), are not to be told apart, and but for its `own`, (B,), are left
    out. Contrastive learning, van den Oord et al. (2018), equation 4.
    """
    centre = meant.mean(0)  # without it the products below would be large, and round in 16 bits
    said, meant = said - centre, meant - centre
    # The square of what was said is left out: for one i it is the same for all j.
    found = (2 * said @ meant.T - meant.square().sum(1)) / near.clamp(min=1e-6)
    others = torch.arange(len(meant), device=own.device) != own[:, None]
    return found.masked_fill(alike & others, -torch.inf)


def draw(wrong: Tensor, count: int, hard: float, generator: torch.Generator) -> Tensor:
    """So many numbers below N, (B,): a share `hard` of them in proportion to `wrong`, (N,), the
    others regardless of it.
    """
    weights = hard * F.normalize(wrong.cpu().double(), p=1, dim=0) + (1 - hard) / len(wrong)
    return torch.multinomial(weights, count, replacement=True, generator=generator)
