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
from sdpipe.loading.schema import check_config
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
    who = f"{label}: {path}"
    values = check_config(read_json(path, label), FILE, who)
    if missing := [key for key in ("names", "words") if key not in values]:
        rule = f"does not hold the list of {missing[0]}"
        raise ModelError(who, rule, "restore the file, or delete it")
    return Vocabulary(tuple(values["names"]), frozenset(values["words"]), values.get("glyphs", {}))
