"""The contrastive loss InfoNCE, with squared distances (van den Oord et al. 2018, equation 4).

    p(j | i) = softmax_j(-|query_i - key_j|^2 / scale)

Each query is to find its own key among all keys: the loss is the cross-entropy of p.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.1
"""The scale of captions' distances, as a fraction of the mean squared distance of two of them."""


def info_nce_logits(
    queries: Tensor, keys: Tensor, positives: Tensor, same: Tensor, scale: Tensor
) -> Tensor:
    """The logits (B, M) of p(j | i), for queries (B, D) and keys (M, D).

    positives: the index of each query's own key, (B,).
    same: the keys that mean the same as the query, (B, M); all of them but its own are left out.
    scale: what the squared distances are divided by.
    """
    centre = keys.mean(0)  # else the products below are large, and imprecise in 16 bits
    queries, keys = queries - centre, keys - centre
    # |query|^2 is left out: it is the same for all keys.
    logits = (2 * queries @ keys.T - keys.square().sum(1)) / scale.clamp(min=1e-6)
    others = torch.arange(len(keys), device=positives.device) != positives[:, None]
    return logits.masked_fill(same & others, -torch.inf)


def caption_contrast(canonical: Tensor, paraphrases: Tensor, same: Tensor) -> Tensor:
    """The contrastive loss of paraphrases against canonical captions.

    canonical: outputs (M, L, D) for the canonical captions of the B paraphrases, and then for
        those of others. They receive no gradient.
    paraphrases: outputs (B, L, D).
    same: which canonical captions are equal to that of each paraphrase, (B, M).
    """
    keys, queries = canonical.detach().float().flatten(1), paraphrases.float().flatten(1)
    batch = len(queries)
    own = keys[:batch] - keys[:batch].mean(0)  # else the products below are large
    squares, different = own.square().sum(1), ~same[:, :batch]
    distances = squares[:, None] + squares - 2 * own @ own.T
    mean = distances[different].sum() / different.sum().clamp(min=1)
    positives = torch.arange(batch, device=keys.device)
    logits = info_nce_logits(queries, keys, positives, same, TEMPERATURE * mean)
    return F.cross_entropy(logits, positives)
