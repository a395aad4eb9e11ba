"""Rivals: pictures of one kind that differ in what they show, and the loss of mistaking them.

Where little can be seen but noise, the caption alone tells what a picture shows. What the network
then guesses is to be nearer to the caption's own picture than to any other of its kind.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpipe.training.refinement import contrastive as mistaken

NEAR = 0.03
"""By this share of how far rivals are apart, nearer is e times likelier."""
NEWS = 0.5
"""How far what is known of a picture moves towards what its last guess shows."""
LEAST = 0.05
"""How wrong a picture counts at least: none is ever done with."""


class Rivals(nn.Module):
    """N pictures as latents (N, C, h, w), each in one of G groups, and their captions.

    `wrong` is how often the guess of each was nearer to a rival of late, (N,).
    """

    wrong: Tensor  # (N,)
    flat: Tensor  # (N, C h w)
    groups: Tensor  # (N,)
    apart: Tensor  # (G,), the mean squared distance of two of a group
    said: Tensor  # (N,), the same number where the caption is the same

    def __init__(self, latents: Tensor, groups: list[int], captions: list[str]) -> None:
        super().__init__()
        self.register_buffer("wrong", torch.ones(len(latents)))
        numbers = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        flat, group = latents.float().flatten(1), torch.tensor(groups)
        kinds = [flat[group == k] for k in range(max(groups) + 1)]
        told = {
            "flat": flat,
            "groups": group,
            "apart": torch.stack([2 * kind.var(0, correction=0).sum() for kind in kinds]),
            "said": torch.tensor([numbers[caption] for caption in captions]),
        }
        for name, value in told.items():
            self.register_buffer(name, value, persistent=False)
        self.captions, self.shape = captions, latents.shape[1:]

    def draw(self, count: int, hard: float, generator: torch.Generator) -> Tensor:
        """Numbers of so many pictures, (P,): a share `hard` of them in proportion to how wrong they
        are, the others regardless of it.
        """
        return mistaken.draw(self.wrong.clamp(min=LEAST), count, hard, generator)

    def latents(self, shown: Tensor) -> Tensor:
        """Those of P pictures, (P, C, h, w)."""
        return self.flat[shown.to(self.flat.device)].unflatten(1, self.shape)

    def loss(self, guess: Tensor, shown: Tensor, noisy: Tensor) -> Tensor:
        """How often the pictures `shown`, (P,), would be taken for a rival: a mean cross-entropy.

        By what was guessed of them, (P, C, h, w), each is to find itself in its group, by

            p(j | i) = softmax_j(-|guess_i - x_0j|^2 / (NEAR d)),

        d the mean squared distance of two of the group. Those with the same caption are not to be
        told apart. Where the guess was made from `noisy` latents, (P,), `wrong` hears of it.
        """
        guess, value = guess.float().flatten(1), guess.new_zeros(())
        found = torch.zeros(len(shown), dtype=torch.bool, device=shown.device)
        for group in self.groups[shown].unique():
            members = (self.groups == group).nonzero().flatten()
            here = (self.groups[shown] == group).nonzero().flatten()
            own = (members == shown[here, None]).int().argmax(1)
            alike = self.said[members] == self.said[shown[here], None]
            near = NEAR * self.apart[group]
            logits = mistaken.logits(guess[here], self.flat[members], own, alike, near)
            value = value + F.cross_entropy(logits, own, reduction="sum")
            found[here] = logits.argmax(1) == own
        self._note(shown[noisy], found[noisy])
        return value / max(len(shown), 1)

    @torch.no_grad()
    def _note(self, shown: Tensor, found: Tensor) -> None:
        """Moves what is known of some pictures towards what was found of them."""
        self.wrong[shown] = torch.lerp(self.wrong[shown], 1 - found.float(), NEWS)
