"""Distillation: the text encoder learns to map a paraphrase to its output for the caption.

A frozen copy of it, the teacher, computes those outputs, which the U-Net already reads. The U-Net
itself takes no part, so a caption costs a fifth of what it costs in the joint stage.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from sdpipe.training.refinement.contrastive import caption_contrast

MAX_NEGATIVES = 2048
"""Subjects that a paraphrase is compared with, at most, beside the captions of its batch."""
MOMENTUM = 0.2
"""The weight of the latest caption in its subject's error, as torch's BatchNorm counts momentum."""


def is_behind_end(tokens: Tensor) -> Tensor:
    """Which tokens (B, L) are the end mark or behind it; the mark has the highest number."""
    return torch.arange(tokens.shape[1], device=tokens.device) >= tokens.argmax(1, keepdim=True)


class ParaphraseDistillation(nn.Module):
    """The loss of a text encoder against its teacher, for paraphrases and canonical captions.

    Outputs for canonical captions are to stay the same; those for paraphrases are to become the
    same behind the caption's end, where all its words have been read. Both are squared errors as
    fractions of the variance between captions. A contrastive loss is added. Knowledge distillation,
    Hinton et al. (2015), of outputs in place of probabilities.

    `error` (N,) is the latest error of each subject's paraphrases.
    """

    error: Tensor  # (N,)
    subjects: Tensor  # (M, L), the tokens of the subjects
    subject_targets: Tensor  # (M, L, D), the teacher's outputs for them

    def __init__(
        self,
        encoder: CLIPTextModel,
        canonical_weight: float,
        contrastive_weight: float,
        subjects: Tensor,
    ) -> None:
        """`subjects` are the tokens of N canonical captions, (N, L): the negatives."""
        super().__init__()
        self.encoder = encoder
        self.canonical_weight, self.contrastive_weight = canonical_weight, contrastive_weight
        self.teacher = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.register_buffer("error", torch.ones(len(subjects)))
        subjects = subjects[:MAX_NEGATIVES].to(next(encoder.parameters()).device)
        self.register_buffer("subjects", subjects, persistent=False)
        targets = torch.cat([self._teach(tokens) for tokens in subjects.split(256)])
        self.register_buffer("subject_targets", targets, persistent=False)
        self._known = {tuple(tokens): i for i, tokens in enumerate(subjects.tolist())}

    def forward(self, tokens: Tensor, canonical: Tensor, subjects: Tensor) -> Tensor:
        """The loss of B captions, some of them paraphrased.

        tokens: of the captions, (B, L).
        canonical: of their canonical captions, (B, L).
        subjects: the index of each caption's subject, (B,). Their errors are updated.
        """
        outputs = self.encoder(tokens).last_hidden_state
        return self.loss(outputs, tokens, canonical, subjects)

    def loss(self, outputs: Tensor, tokens: Tensor, canonical: Tensor, subjects: Tensor) -> Tensor:
        """The loss of the encoder's outputs for `tokens`, (B, L, D)."""
        targets, outputs = self._targets(canonical), outputs.float()
        behind = (is_behind_end(tokens) & is_behind_end(canonical)).all(0)  # (L,)
        paraphrased = (tokens != canonical).any(1)  # (B,)
        error = (outputs - targets).square()
        on_canonical, on_paraphrases = error[~paraphrased], error[paraphrased][:, behind]
        targets, outputs = targets[:, behind], outputs[:, behind]
        variance = targets.var(0, correction=0).mean().clamp(min=1e-6)
        kept, learned = (
            e.sum() / max(e.numel(), 1) / variance for e in (on_canonical, on_paraphrases)
        )
        self._update(subjects[paraphrased], on_paraphrases.detach().mean((1, 2)) / variance)
        value = self.canonical_weight * kept + learned
        if not self.contrastive_weight:
            return value
        same = (canonical[:, None] == torch.cat([canonical, self.subjects])).all(2)
        keys = torch.cat([targets, self.subject_targets[:, behind]])
        return value + self.contrastive_weight * caption_contrast(keys, outputs, same)

    def _targets(self, canonical: Tensor) -> Tensor:
        """The teacher's outputs (B, L, D); those for the subjects are cached."""
        numbers = [self._known.get(tuple(tokens)) for tokens in canonical.tolist()]
        new = torch.tensor([number is None for number in numbers], device=canonical.device)
        targets = self.subject_targets[[number or 0 for number in numbers]]
        if new.any():
            targets[new] = self._teach(canonical[new])
        return targets

    @torch.no_grad()
    def _teach(self, tokens: Tensor) -> Tensor:
        return self.teacher(tokens).last_hidden_state.float()

    @torch.no_grad()
    def _update(self, subjects: Tensor, error: Tensor) -> None:
        """Moves the errors of subjects towards the latest ones."""
        self.error.index_add_(0, subjects, (error - self.error[subjects]) * MOMENTUM)
        self.error.clamp_(min=0)
