"""Which images go through the networks together."""

import shlex
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import TYPE_CHECKING, TypeVar

import torch

from sdpipe.components import Components
from sdpipe.errors import NotFiniteError, UsageError, warn
from sdpipe.prompt.chunks import TokenizedPrompt, tokenize_prompts
from sdpipe.prompt.encode import PromptEmbeddings, encode_tokenized
from sdpipe.prompt.habits import warn_habits, warn_unused_words
from sdpipe.prompt.syntax import warn_unreached_edits
from sdpipe.prompt.tree import Timing
from sdpipe.prompt.vocabulary import warn_unknown_words

if TYPE_CHECKING:
    from sdpipe.settings import ResolvedSettings

T = TypeVar("T")

MAX_CHUNKS = 2**11
"""Of the texts of a prompt in the course of a run, all as long as the longest: 470 MB for v1-4."""

BATCH_PIXELS = 2**22
"""A CPU draws no faster with more at once: 16 images of 512 x 512, or 256 of 128 x 128."""

GPU_PIXELS = 2**24
"""What the engine of many images tries first on a GPU: 64 images of 512 x 512."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that the U-Net draws together: alike in all settings but prompts and seeds.

    images: their numbers in the run, from 0: B of them.
    settings: of each of them.
    prompts: of each of them, the prompt and the negative prompt.
    embeddings: the prompts' embeddings, where another thread computes them ahead.
    """

    images: range
    settings: tuple["ResolvedSettings", ...]
    prompts: tuple[tuple[TokenizedPrompt, TokenizedPrompt], ...]
    embeddings: Future[PromptEmbeddings] | None = None

    def __len__(self) -> int:
        return len(self.settings)

    def split(self, most: int) -> "list[Batch]":
        """The same images, at most `most` at a time."""
        parts = [slice(i, i + most) for i in range(0, len(self), most)]
        return [Batch(self.images[p], self.settings[p], self.prompts[p]) for p in parts]


def split_into_batches(
    parts: Components, images: Sequence["ResolvedSettings"], most: int | None = None
) -> list[Batch]:
    """Groups neighbours that can be drawn together, each batch as large as is fast.

    most: images of a batch, at most; None is as many as are fast.

    The prompts of a batch have equally many chunks, so an image does not depend on the length of
    another's prompt. With `batch_invariant` a batch is one image.

    Warns of what has no effect in a prompt, and of unknown words.

    Raises:
        UsageError: a prompt breaks a rule of the syntax, or is too long for how often it changes.
    """
    warn_about(parts, [text for s in images for text in (s.prompt, s.negative_prompt)])
    prompts = list(_tokenize(parts, images))

    def key(i: int) -> tuple["ResolvedSettings", int]:
        return common_settings(images[i]), max(map(len, prompts[i]))

    batches = []
    for (settings, _), indices in groupby(range(len(images)), key):
        first, *others = indices
        members = slice(first, first + 1 + len(others))
        batch = Batch(range(len(images))[members], tuple(images[members]), tuple(prompts[members]))
        room = batch_room(parts, settings)
        if parts.device.type == "cuda":  # a GPU tries them all, see `draw_batches`
            room = len(batch)
        batches += batch.split(1 if settings.batch_invariant else min(room, most or room))
    return batches


def batch_room(parts: Components, settings: "ResolvedSettings") -> int:
    """How many images to draw at once, as long as nothing says that memory holds fewer."""
    width, height = settings.output_size
    pixels = GPU_PIXELS if parts.device.type == "cuda" else BATCH_PIXELS
    return max(pixels // (width * height), 1)


def num_chunks(parts: Components, settings: "ResolvedSettings") -> int:
    """How many chunks the prompts of an image have: those of a batch have equally many.

    Raises:
        UsageError: as `split_into_batches`.
    """
    (prompts,) = _tokenize(parts, [settings])
    return max(map(len, prompts))


def _tokenize(
    parts: Components, images: Sequence["ResolvedSettings"]
) -> Iterator[tuple[TokenizedPrompt, TokenizedPrompt]]:
    """The prompt and the negative prompt of each image."""
    for timing, group in groupby(images, _timing):
        pairs = [(s.prompt, s.negative_prompt) for s in group]
        tokenized = tokenize_prompts(parts.tokenizer, chain(*pairs), timing)
        warn_unreached_edits(tokenized, timing)
        for pair in pairs:
            prompt, negative = tokenized[pair[0]], tokenized[pair[1]]
            _check_work(prompt, negative)
            yield prompt, negative


def _check_work(*prompts: TokenizedPrompt) -> None:
    """Refuses prompts that fill the memory."""
    texts, length = max(len(prompt.variants) for prompt in prompts), max(map(len, prompts))
    if texts * length > MAX_CHUNKS:
        raise UsageError(
            f"the prompt and the negative prompt, of {texts} texts in the course of the steps",
            f"have {length} chunks each, and at most {MAX_CHUNKS} in all are encoded",
            "shorten them, or use fewer edits, alternations and BREAKs",
        )


def warn_about(parts: Components, texts: Iterable[str]) -> None:
    """Warns of what has no effect in prompts, and of words that the model was not trained on."""
    texts = list(dict.fromkeys(texts))
    added_tokens = parts.tokenizer.added_tokens_encoder
    warn_habits(texts, added_tokens)
    if parts.vocabulary is not None:
        command = f"sdpipe names --model {shlex.quote(parts.model.name)}"
        warn_unknown_words(parts.vocabulary, texts, parts.model.name, command, added_tokens)


def warn_unused_embeddings(parts: Components, images: Iterable["ResolvedSettings"]) -> None:
    """Warns of the textual inversions whose words are in no prompt of these images."""
    texts = {text for s in images for text in (s.prompt, s.negative_prompt)}
    warn_unused_words([embedding.word for embedding in parts.model.embeddings], texts)


def common_settings(settings: "ResolvedSettings") -> "ResolvedSettings":
    """What all images of a batch have in common: all but prompts and seeds."""
    seed = None if settings.variation_seed is None else 0
    return replace(settings, dim=None, prompt="", negative_prompt="", seed=0, variation_seed=seed)


def _timing(settings: "ResolvedSettings") -> Timing:
    """The steps of an image, as its prompts count them."""
    second = 0
    if settings.hires_scale is not None:
        second = settings.num_steps_taken(settings.hires_strength)
    delay = None
    if settings.prompt_edits == "a1111":
        # PLMS, which calls the U-Net twice at its first step, is in step with the edits.
        delay = 0 if settings.scheduler == "pndm" else 1
    return Timing(settings.num_steps_taken(settings.strength), second, delay)


def encode(parts: Components, batch: Batch) -> PromptEmbeddings:
    """The prompt embeddings of a batch, for the steps of its first pass, then of its second."""
    if batch.embeddings is not None:
        return batch.embeddings.result()
    prompts, negative_prompts = zip(*batch.prompts, strict=True)
    with parts.on_device(parts.text_encoder):
        return encode_tokenized(
            parts.text_encoder,
            prompts,
            negative_prompts,
            clip_skip=batch.settings[0].clip_skip,
        )


def draw_batches(
    batches: Iterable[Batch],
    draw: Callable[[Batch], Iterator[T]],
    on_failed: Callable[[int, Exception], object] | None = None,
) -> Iterator[T]:
    """Draws batch after batch, and yields what `draw` yields of each.

    A batch that runs out of memory begins anew at its first step, in halves, and so do the later
    ones; a warning says so.

    on_failed: called with the number of an image that can't be drawn, and the error, before the
        others are drawn; a batch with such an image begins anew image by image. None raises.

    Raises:
        torch.OutOfMemoryError: a single image is too large for the device.
        NotFiniteError: a stage produced NaN or infinity.
    """
    waiting = deque(batches)
    while waiting:
        batch = waiting.popleft()
        try:
            yield from draw(batch)
            continue
        except (torch.OutOfMemoryError, NotFiniteError) as error:
            overflows = isinstance(error, NotFiniteError)
            if len(batch) == 1 or (overflows and on_failed is None):
                if on_failed is None:
                    raise
                on_failed(batch.images.start, error)
                continue
        if overflows:  # one of them may have spoilt it for all
            waiting.extendleft(reversed(batch.split(1)))
            continue
        most = (len(batch) + 1) // 2
        warn(f"out of memory for {len(batch)} images at once; they are drawn {most} at a time.")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        waiting = deque(part for each in (batch, *waiting) for part in each.split(most))
