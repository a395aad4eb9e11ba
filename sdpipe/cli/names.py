"""`sdpipe names`: lists what a model draws."""

import json
from typing import Annotated

import typer

from sdpipe.cli import console, options
from sdpipe.errors import ModelError, UsageError
from sdpipe.loading.locate import BUILT_IN, chosen_model
from sdpipe.loading.vocabulary import find_vocabulary

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[WORD]...", help="List only names that have all of these words."),
]
Model = Annotated[
    str | None,
    options.option(
        options.MODEL,
        f"The model. Default: $SDPIPE_MODEL, else {BUILT_IN[0]}.",
        metavar="NAME",
    ),
]


def names(
    words: Words = None,
    model: Model = None,
    as_json: options.PrintJson = False,
    debug: options.Debug = False,
) -> None:
    """Lists the names of the things that a model was trained to draw, one per line."""
    text = " ".join(options.text("WORD", word) for word in words or [])
    model = model or chosen_model() or BUILT_IN[0]
    vocabulary = find_vocabulary(model)
    if vocabulary is None or not vocabulary.names:
        raise ModelError(
            f"model={model!r}", "has no list of names", "describe the image in any words"
        )
    found = vocabulary.find_names(text)
    if not found:
        suggestion = vocabulary.suggest_names(text)
        raise UsageError(
            repr(text),
            f"is in none of the {len(vocabulary.names):,} names of {model}",
            f"try {suggestion!r}" if suggestion else "use fewer words, or none to list all names",
        )
    console.print_result(
        json.dumps(found, ensure_ascii=False, indent=2) if as_json else "\n".join(found)
    )
