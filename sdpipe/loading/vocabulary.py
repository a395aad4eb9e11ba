"""Reads `words.json`, the list of the words that a model was trained on.

    {
      "names": ["abacus", ...],
      "words": ["a", "abacus", "above", ...],
      "glyphs": {"🧮": "abacus", ...}
    }

The glyphs, names in another script, may be left out.

Imports no torch.
"""

from pathlib import Path

from sdpipe.errors import ModelError
from sdpipe.loading.configs import read_json
from sdpipe.loading.locate import find_model
from sdpipe.prompt.vocabulary import Vocabulary

FILE = "words.json"


def find_vocabulary(model: str) -> Vocabulary | None:
    """Reads the vocabulary of a model by its name; the weights need not be here.

    Returns: None for a model without one.

    Raises:
        ModelError: there is no such model, or the file is damaged.
    """
    location = find_model(model, parts=())
    return read_vocabulary(location.path, location.label)


def read_vocabulary(folder: Path, label: str) -> Vocabulary | None:
    """Reads the vocabulary in a model's folder; `label` is how messages call the model.

    Returns: None for a folder without one.

    Raises:
        ModelError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    values = read_json(path, label)
    lists = [values.get(key) for key in ("names", "words")]
    glyphs = values.get("glyphs", {})
    lists.append(list(glyphs.values()) if isinstance(glyphs, dict) else None)
    if not all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in lists):
        raise ModelError(
            f"{label}: {path}",
            "does not hold two lists of strings, names and words, and their glyphs",
            "restore the file, or delete it",
        )
    return Vocabulary(tuple(values["names"]), frozenset(values["words"]), glyphs)
