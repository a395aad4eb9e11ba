"""Rivals: pictures of one kind that differ in what they show, and the loss of mistaking them.

Where little can be seen but noise, the caption alone tells what a picture shows. What the network
then guesses is to be nearer to the caption's own picture than to any other of its kind.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEAR = 0.03
"""By this share of how far rivals are apart, nearer is e times likelier."""
NEWS = 0.5
"""How far what is known of a picture moves towards what its last guess shows."""
LEAST = 0.05
"""How wrong a picture counts at least: none is ever done with."""


class Rivals(nn.Module):
    """N pictures as latents (N, C, h, w), each in a group, and the captions that tell them apart.

    `wrong` is how often the guess of each was nearer to a rival of late, (N,).
    """

    wrong: Tensor  # (N,)
    flat: Tensor  # (N, C h w)
    groups: Tensor  # (N,)
    said: Tensor  # (N,), the same number where the caption is the same

    def __init__(self, latents: Tensor, groups: list[int], captions: list[str]) -> None:
        super().__init__()
        self.register_buffer("wrong", torch.ones(len(latents)))
        numbers = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        told = {
            "flat": latents.float().flatten(1),
            "groups": torch.tensor(groups),
            "said": torch.tensor([numbers[caption] for caption in captions]),
        }
        for name, value in told.items():
            self.register_buffer(name, value, persistent=False)
        self.captions, self.shape = captions, latents.shape[1:]

    def draw(self, count: int, hard: float, generator: torch.Generator) -> Tensor:
        """Numbers of so many pictures, (P,): a share `hard` of them in proportion to how wrong they
        are, the others regardless of it.
        """
        wrong = self.wrong.cpu().double().clamp(min=LEAST)
        weights = hard * wrong / wrong.sum() + (1 - hard) / len(wrong)
        return torch.multinomial(weights, count, replacement=True, generator=generator)

    def latents(self, shown: Tensor) -> Tensor:
        """Those of P pictures, (P, C, h, w)."""
        return self.flat[shown.to(self.flat.device)].unflatten(1, self.shape)

    def loss(self, guess: Tensor, shown: Tensor, noisy: Tensor) -> Tensor:
        """How often the pictures `shown`, (P,), would be taken for a rival: a mean cross-entropy.

        By what was guessed of them, (P, C, h, w), each is to find itself in its group, by

            p(j | i) = softmax_j(-|guess_i - x_0j|^2 / (NEAR d)),

        d the mean squared distance of two of the group. Those with the same caption are not to be
        told apart. It is the contrastive loss of van den Oord et al. (2018), equation 4. Where the
        guess was made from `noisy` latents, (P,), `wrong` hears of it.
        """
        guess, value = guess.float().flatten(1), guess.new_zeros(())
        found = torch.zeros(len(shown), dtype=torch.bool, device=shown.device)
        for group in self.groups[shown].unique():
            members = (self.groups == group).nonzero().flatten()
            here = (self.groups[shown] == group).nonzero().flatten()
            flat, own = self.flat[members], members == shown[here, None]  # (M, C h w), (p, M)
            d = 2 * flat.var(0, correction=0).sum().clamp(min=1e-6)
            # The square of the guess is left out: for one i it is the same for all j.
            logits = (2 * guess[here] @ flat.T - flat.square().sum(1)) / (NEAR * d)
            alike = self.said[members] == self.said[shown[here], None]
            logits = logits.masked_fill(alike & ~own, -torch.inf)
            target = own.int().argmax(1)
            value = value + F.cross_entropy(logits, target, reduction="sum")
            found[here] = logits.argmax(1) == target
        self._note(shown[noisy], found[noisy])
        return value / max(len(shown), 1)

    @torch.no_grad()
    def _note(self, shown: Tensor, found: Tensor) -> None:
        """Moves what is known of some pictures towards what was found of them."""
        self.wrong[shown] = torch.lerp(self.wrong[shown], 1 - found.float(), NEWS)
