"""Hard negatives: images that are easily mistaken for each other, and are drawn more often.

At a noisy step the caption alone tells what an image shows. The network's guess of x_0 is to be
nearer to its own image than to any other of the same group, such as all glyphs of one size at one
place. A squared error over all latents hardly sees what tells a clock at eight from one at five.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpipe.training.refinement.contrastive import info_nce_logits

TEMPERATURE = 0.03
"""The scale of distances as a fraction of the mean squared distance within a group."""
MOMENTUM = 0.5
"""The weight of the latest guess in an image's error rate, as torch's BatchNorm counts momentum."""
MIN_ERROR = 0.05
"""The least error rate that an image is drawn by, so that each is drawn again."""


def sample_by_error(
    errors: Tensor, count: int, hard_fraction: float, generator: torch.Generator
) -> Tensor:
    """Draws indices (B,) below N with replacement: `hard_fraction` of them in proportion to the
    errors (N,), the rest uniformly.
    """
    weights = F.normalize(errors.cpu().double(), p=1, dim=0)
    weights = hard_fraction * weights + (1 - hard_fraction) / len(errors)
    return torch.multinomial(weights, count, replacement=True, generator=generator)


def sample_subjects(
    errors: Tensor, count: int, hard_fraction: float, images: int, generator: torch.Generator
) -> Tensor:
    """Draws indices (B,) of images: first a subject by its squared error, then one of its images.

    errors: the error of each of N subjects, (N,).
    images: the size of the dataset, in which image i shows subject i % N.
    """
    subjects = len(errors)
    drawn = sample_by_error(errors.cpu().double().square(), count, hard_fraction, generator)
    images_each = max(images // subjects, 1)
    return drawn + subjects * torch.randint(images_each, (count,), generator=generator)


class HardNegatives(nn.Module):
    """N images as latents (N, C, h, w), each in one of G groups, and their captions.

    `error_rate` (N,) is how often the latest guesses of each image were nearer to another.
    """

    error_rate: Tensor  # (N,)
    flat: Tensor  # (N, C h w)
    groups: Tensor  # (N,)
    distances: Tensor  # (G,), the mean squared distance of two images of a group
    caption_ids: Tensor  # (N,), equal where the captions are equal

    def __init__(self, latents: Tensor, groups: list[int], captions: list[str]) -> None:
        super().__init__()
        self.register_buffer("error_rate", torch.ones(len(latents)))
        ids = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        flat, group = latents.float().flatten(1), torch.tensor(groups)
        members = [flat[group == k] for k in range(max(groups) + 1)]
        constants = {
            "flat": flat,
            "groups": group,
            "distances": torch.stack([2 * m.var(0, correction=0).sum() for m in members]),
            "caption_ids": torch.tensor([ids[caption] for caption in captions]),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.captions, self.shape = captions, latents.shape[1:]

    def sample(self, count: int, hard_fraction: float, generator: torch.Generator) -> Tensor:
        """Draws indices (P,) of images, `hard_fraction` of them in proportion to the error rate."""
        errors = self.error_rate.clamp(min=MIN_ERROR)
        return sample_by_error(errors, count, hard_fraction, generator)

    def latents(self, indices: Tensor) -> Tensor:
        """The latents of P images, (P, C, h, w)."""
        return self.flat[indices.to(self.flat.device)].unflatten(1, self.shape)

    def loss(self, x0: Tensor, indices: Tensor, noisy: Tensor) -> Tensor:
        """The contrastive loss of guesses x0 (P, C, h, w) of the images `indices` (P,).

        Images with the same caption are not compared. Guesses from `noisy` latents (P,) update the
        error rates.
        """
        queries, value = x0.float().flatten(1), x0.new_zeros(())
        found = torch.zeros(len(indices), dtype=torch.bool, device=indices.device)
        for group in self.groups[indices].unique():
            members = (self.groups == group).nonzero().flatten()
            here = (self.groups[indices] == group).nonzero().flatten()
            positives = (members == indices[here, None]).int().argmax(1)
            same = self.caption_ids[members] == self.caption_ids[indices[here], None]
            scale = TEMPERATURE * self.distances[group]
            logits = info_nce_logits(queries[here], self.flat[members], positives, same, scale)
            value = value + F.cross_entropy(logits, positives, reduction="sum")
            found[here] = logits.argmax(1) == positives
        self._update(indices[noisy], found[noisy])
        return value / max(len(indices), 1)

    @torch.no_grad()
    def _update(self, indices: Tensor, found: Tensor) -> None:
        """Moves error rates towards the latest result."""
        self.error_rate[indices] = torch.lerp(self.error_rate[indices], 1 - found.float(), MOMENTUM)
