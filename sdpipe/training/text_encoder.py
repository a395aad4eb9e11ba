"""The text encoder, first trained alone: from a caption it tells the picture, as far as it can.

Of all pictures with one caption the mean is the best guess under a squared error. It is what a
U-Net has to find out first, at the noisiest step, where x_t says nothing and the caption all; to
learn it here takes a tenth of the arithmetic. The guess is read from the encoder's last outputs,
behind the caption, one for each field of a grid over the latents; the layer that reads it is thrown
away, the encoder stays, and its outputs hold the layout for the U-Net's cross-attention to read.

When the U-Net has learned to read it, the encoder learns alone once more: to say of a caption in
other words, a plural, a letter wrong, what it says of the plain one. That takes no U-Net, and a
caption costs a fifth of what it costs with one.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdpipe.training.recipe import Text
from sdpipe.training.refinement.contrastive import logits

TEMPERATURE = 0.1
"""By this share of how far captions are apart, nearer is e times likelier."""
SUBJECTS = 2048
"""So many at most are what a caption might be confused with, beside those of a batch."""
NEWS = 0.2
"""How far what is known of a subject moves towards what a caption about it shows."""


def build_text_encoder(recipe: Text, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIPTextModel for a tokenizer's vocabulary and length."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            hidden_size=recipe.hidden_size,
            intermediate_size=4 * recipe.hidden_size,
            num_hidden_layers=recipe.num_hidden_layers,
            num_attention_heads=recipe.num_attention_heads,
            projection_dim=recipe.hidden_size,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class LatentsFromText(nn.Module):
    """The loss of guessing latents from captions: the mean squared error."""

    def __init__(self, encoder: CLIPTextModel, grid: int, channels: int, size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.grid = grid
        self.shape = (channels, size // grid, size // grid)
        self.read = nn.Linear(encoder.config.hidden_size, channels * (size // grid) ** 2)

    def guess(self, tokens: Tensor) -> Tensor:
        """The latents (B, C, h, w) that captions (B, L) make one expect."""
        outputs = self.encoder(tokens).last_hidden_state[:, -(self.grid**2) :]
        fields = self.read(outputs).unflatten(2, self.shape)  # (B, grid * grid, C, p, p)
        fields = fields.unflatten(1, (self.grid, self.grid))  # (B, row, column, C, p, p)
        return fields.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def forward(self, tokens: Tensor, x_0: Tensor) -> Tensor:
        """The loss of B captions (B, L) and the latents (B, C, h, w) of their pictures."""
        return F.mse_loss(self.guess(tokens).float(), x_0)


def ended(tokens: Tensor) -> Tensor:
    """Where captions (B, L) have ended: from their mark on, which has the highest number."""
    return torch.arange(tokens.shape[1], device=tokens.device) >= tokens.argmax(1, keepdim=True)


class OtherWords(nn.Module):
    """The loss of a text encoder that is to say of other words what it said of the plain ones.

    What it said tells a copy of it that does not learn: the U-Net knows how to read that. Plain
    captions are to stay what they are; those in other words are to be the same behind their ends,
    where a caption's words have been read. Both are squared errors, as shares of the variance
    between captions. Knowledge distillation, Hinton et al. (2015), by outputs in place of
    probabilities.
    """

    wrong: Tensor  # (N,)
    plain: Tensor  # (N, L)
    said_of_plain: Tensor  # (N, L, D)

    def __init__(self, encoder: CLIPTextModel, kept: float, contrast: float, plain: Tensor) -> None:
        """`kept` is the weight of the plain captions' error beside that of the others, `contrast`
        that of `confusion` beside both. `plain` are the tokens of N subjects in plain words,
        (N, L), which no caption about another is to be taken for.
        """
        super().__init__()
        self.encoder, self.kept, self.contrast = encoder, kept, contrast
        self.before = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.register_buffer("wrong", torch.ones(len(plain)))
        some = plain[:SUBJECTS].to(next(encoder.parameters()).device)
        self.register_buffer("plain", some, persistent=False)
        said = torch.cat([self._said_before(tokens) for tokens in some.split(256)])
        self.register_buffer("said_of_plain", said, persistent=False)
        self._known = {tuple(tokens): i for i, tokens in enumerate(some.tolist())}

    def forward(self, said: Tensor, meant: Tensor, subjects: Tensor) -> Tensor:
        """The loss of B captions (B, L) as they are said and as they are meant, in plain words.

        subjects: the number of what each is about, (B,). `wrong` becomes what it is of them now.
        """
        return self.loss(self.encoder(said).last_hidden_state, said, meant, subjects)

    def loss(self, now: Tensor, said: Tensor, meant: Tensor, subjects: Tensor) -> Tensor:
        """The same of the encoder's outputs for what is said, (B, L, D)."""
        before, now = self._before(meant), now.float()  # (B, L, D)
        behind = (ended(said) & ended(meant)).all(0)  # (L,)
        reworded = (said != meant).any(1)  # (B,)
        error = (now - before).square()
        plain, others = error[~reworded], error[reworded][:, behind]
        before, now = before[:, behind], now[:, behind]
        variance = before.var(0, correction=0).mean().clamp(min=1e-6)
        kept, learned = (e.sum() / max(e.numel(), 1) / variance for e in (plain, others))
        self._note(subjects[reworded], others.detach().mean((1, 2)) / variance)
        value = self.kept * kept + learned
        if not self.contrast:
            return value
        known = torch.cat([meant, self.plain])
        apart = torch.cat([before, self.said_of_plain[:, behind]])
        alike = (meant[:, None] == known).all(2)
        return value + self.contrast * confusion(apart, now, alike)

    def _before(self, meant: Tensor) -> Tensor:
        """What was said of plain captions; of the subjects alone it is known."""
        numbers = [self._known.get(tuple(tokens)) for tokens in meant.tolist()]
        new = torch.tensor([number is None for number in numbers], device=meant.device)
        before = self.said_of_plain[[number or 0 for number in numbers]]  # (B, L, D)
        if new.any():
            before[new] = self._said_before(meant[new])
        return before

    @torch.no_grad()
    def _said_before(self, tokens: Tensor) -> Tensor:
        return self.before(tokens).last_hidden_state.float()

    @torch.no_grad()
    def _note(self, subjects: Tensor, wrong: Tensor) -> None:
        """Moves what is known of some subjects towards what was found of them."""
        self.wrong.index_add_(0, subjects, (wrong - self.wrong[subjects]) * NEWS)
        self.wrong.clamp_(min=0)


def confusion(meant: Tensor, said: Tensor, alike: Tensor) -> Tensor:
    """How often captions in other words would be taken for another: a mean cross-entropy.

    Of B captions `said` are the outputs for other words, (B, L, D), and `meant` those for their own
    plain words and then for those of others, (M, L, D). Each of `said` is to find its own of
    `meant`, by

        p(j | i) = softmax_j(-|said_i - meant_j|^2 / (TEMPERATURE d)),

    d the mean squared distance of two of the captions' own. Those that are `alike`, (B, M), are not
    to be told apart. Only what was said learns from it.
    """
    meant, said = meant.detach().float().flatten(1), said.float().flatten(1)
    batch = len(said)
    own_meant = meant[:batch] - meant[:batch].mean(0)  # or the products below would be large
    squares, others = own_meant.square().sum(1), ~alike[:, :batch]
    apart = squares[:, None] + squares - 2 * own_meant @ own_meant.T
    d = apart[others].sum() / others.sum().clamp(min=1)
    own = torch.arange(batch, device=meant.device)
    return F.cross_entropy(logits(said, meant, own, alike, TEMPERATURE * d), own)
