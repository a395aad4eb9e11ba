"""What people write in prompts as for other programs, and a warning of each. Imports no torch.

A prompt that has it is drawn as it is: nothing of it is left out, replaced or obeyed.

- The syntax of other programs means nothing here, and is drawn as text.
- Typographic signs are other tokens than in the training. The tokenizer that Stable Diffusion was
  trained with makes plain text of curly quotes, ligatures, full-width letters and HTML entities by
  `ftfy.fix_text`, if ftfy is installed; transformers 5 and diffusers on it, and so this program,
  take them as they are.
- The word of a textual inversion counts only where no other letter touches it.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping

from sdpipe.errors import warn

SYNTAX: Mapping[str, str] = {
    r"<(?:lora|lyco):[^<>]+>": "a LoRA is given with --lora FILE:WEIGHT, in Python with loras",
    r"\bembedding:[^\s,()\[\]]+": "an embedding is given with --embedding FILE, in Python with "
    "embeddings, and in the prompt stands its word alone",
    r"<[\w-]+>": "the word of an embedding needs its file, --embedding FILE:WORD",
    r"\{[^{}]*\|[^{}]*\}": "sdpipe sweep draws each of the alternatives",
    r"\{[^{}|]+\}": "write (cat) for a word with more weight",
    r"\b__[\w*/-]+__(?!\w)": "write the words themselves; sdpipe sweep draws each of {cat|dog}",
    r"\bAND\b": "separate subjects by commas, with weights as in (cat:1.3)",
    r"\)(?:\++|-+)(?=[\s,.)]|$)|[^\W\d_]{2,}\++(?=[\s,.)]|$)": "write a weight as (cat:1.3)",
    r"(?:^|(?<=,))[^()\[\]{}<>,:\n]+:\d*\.\d+ *(?=,|$)": "write a weight as (cat:1.3)",
    r"[^\W_]+ ?::-?\d*\.?\d*(?=[\s,]|$)": "write a weight as (cat:1.3)",
    r"\)\s*\.(?:and|blend|swap)\([^)]*\)?": "[cat:dog:0.5] is first a cat, then a dog",
    r"(?:^|(?<=\s))--[a-z]\w*\b(?: [\w.:-]+)?": "settings are options, outside of the prompt",
}
"""What A1111, ComfyUI, InvokeAI, NovelAI, Midjourney and wildcards' extensions read in a prompt,
as regular expressions, each with what does it here."""

_FULL_WIDTH = (0x3000, *range(0xFF01, 0xFFF0))
_LIGATURES = (0x132, 0x133, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4))
_PLAIN: dict[int, str | None] = {
    **{c: unicodedata.normalize("NFKC", chr(c)) for c in (*_FULL_WIDTH, *_LIGATURES)},
    **{c: unicodedata.normalize("NFKC", chr(c)) for c in range(0xFB00, 0xFB07)},
    **dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'"),
    0x149: "'n",
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
    # Signs that are not seen: ftfy's control characters, and the zero-width ones.
    **dict.fromkeys((*range(9), 11, *range(14, 32), 127, 0xAD, 0xFEFF)),
    **dict.fromkeys((0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070))),
    **dict.fromkeys(range(0xFFF9, 0xFFFD)),
}
MAX_SEARCHED = 2**12  # characters of a prompt; some of the expressions take their square in time

_ANY_SYNTAX = re.compile(r"[<{:+)]|--|__|AND")  # a prompt without these has none
_ENTITY = re.compile(r"&#?\w{1,24};")


def plain_spelling(text: str) -> str:
    """A text without typographic signs, as ftfy's `fix_text` has it, and without unseen ones."""
    if "<" not in text:
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    return unicodedata.normalize("NFC", text.translate(_PLAIN))


def warn_habits(prompts: Iterable[str], added_tokens: Iterable[str] = ()) -> None:
    """Warns, with an `SdpipeWarning` each, of other programs' syntax and typographic signs.

    The first `MAX_SEARCHED` characters of each prompt are searched.

    added_tokens: the words of textual inversions, which are no syntax.
    """
    words = set(added_tokens)
    for prompt in (prompt[:MAX_SEARCHED] for prompt in prompts):
        unescaped = re.sub(r"\\.", " ", prompt, flags=re.DOTALL)
        for pattern, remedy in SYNTAX.items() if _ANY_SYNTAX.search(unescaped) else ():
            found = re.search(pattern, unescaped)
            if found is not None and found[0] not in words:
                warn(f"{_shorten(found[0].strip())!r} is drawn as text; {remedy}.")
        plain = plain_spelling(prompt)
        if plain != unicodedata.normalize("NFC", prompt):
            signs = dict.fromkeys(c for c in prompt if ord(c) in _PLAIN)
            shown = [c if c.isprintable() else f"U+{ord(c):04X}" for c in signs]
            listed = ", ".join([*shown, *dict.fromkeys(_ENTITY.findall(prompt))][:6])
            warn(
                f"the tokenizer reads {listed} as such, and models are trained with plain text; "
                f"for that write {_shorten(plain, 200)!r}."
            )


def warn_unused_words(words: Iterable[str], prompts: Iterable[str]) -> None:
    """Warns, with an `SdpipeWarning` each, of words of textual inversions that no prompt has."""
    words = sorted(words, key=len, reverse=True)  # of two that begin alike the longer one counts
    if not words:
        return
    text = "\n".join(prompts).lower()
    alone = re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(word.lower()) for word in words)})(?!\w)")
    used = set(alone.findall(text))
    for word in words:
        if word.lower() not in used:
            where = "touches other letters in" if word.lower() in text else "is not in"
            warn(
                f"the embedding {word!r} has no effect: its word {where} the prompt; write "
                f"{word!r} there as a word of its own."
            )


def _shorten(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
