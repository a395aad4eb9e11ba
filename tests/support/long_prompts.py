"""Reads prompts that are made to take for ever, and prints what is said of each, a JSON object."""

import json
import sys
import warnings

from sdpipe.errors import SdpipeError
from sdpipe.loading.vocabulary import find_vocabulary
from sdpipe.prompt.habits import warn_habits
from sdpipe.prompt.syntax import parse, warn_unreached_edits
from sdpipe.prompt.tree import Timing
from sdpipe.prompt.vocabulary import warn_unknown_words
from sdpipe.settings import Settings

MANY = "".join(f"[::{k}]" for k in range(1, 999))  # another state at every step


def prompts(n):
    """Prompts of at most n characters, by what there is much of in them."""
    rest = n - len(MANY)
    return {
        "lines": "(a)\n" * (n // 4),
        "colons": "(" + ":" * (n - 3) + "1)",
        "digits": "[a:b:" + "0" * (n - 7) + "1]",
        "alternations": "[a|b]" * (n // 5),
        "weights": "[x|y]" + "(a)(b:1.2)" * (n // 10 - 1),
        "edits": MANY + "(a:1.1)b" * (rest // 8),
        "empty brackets": MANY + "[|]" * (rest // 3),
        "periods": "".join(f"[{'|' * k}a]" for k in range(1, int((2 * n) ** 0.5) - 4)),
        "letters": "+" + "a" * (n - 1),
        "bars": "{" + "|" * (n - 1),
        "marks": "a" + "\u0301\u0323" * ((n - 1) // 2),
        "unknown words": " ".join(f"q{k:x}z".translate(LETTERS) for k in range(n // 8)),
        "one unknown word": "red appel " * (n // 10),
        "breaks": "BREAK " * (n // 6),
    }


LETTERS = str.maketrans("0123456789", "ghijklmnop")


def read(prompt):
    """What is said of a prompt: the refusal, or the beginnings of the warnings."""
    vocabulary = find_vocabulary("emoji")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            Settings(prompt=prompt)
            parse(prompt).schedule(Timing(999))
        except SdpipeError as error:
            return str(error)
        warn_unreached_edits([prompt], Timing(999))
        warn_habits([prompt])
        warn_unknown_words(vocabulary, [prompt], "emoji", "sdpipe names")
    return " ".join(str(warning.message)[:200] for warning in warned)


if __name__ == "__main__":
    json.dump({name: read(text) for name, text in prompts(int(sys.argv[1])).items()}, sys.stdout)
