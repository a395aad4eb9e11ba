"""The command that lists what a model draws."""

import json
from typing import Annotated

import typer

from sdpipe.cli import console as messages
from sdpipe.cli import options
from sdpipe.errors import ModelError, UsageError
from sdpipe.loading.locate import BUILT_IN, chosen_model
from sdpipe.prompt.vocabulary import find_learned

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[WORD]...", help="Only names that have all of these. Left out: every."),
]
Model = Annotated[
    str | None,
    options.option(
        options.MODEL,
        f"Whose names. Left out: $SDPIPE_MODEL, else {BUILT_IN[0]}.",
        metavar="NAME",
    ),
]


def names(
    word: Words = None,
    model: Model = None,
    as_json: options.PrintJson = False,
    debug: options.Debug = False,
) -> None:
    """Prints the names of what a model draws, which it was trained on, one a line."""
    asked = " ".join(options.text("WORD", each) for each in word or [])
    name = model or chosen_model() or BUILT_IN[0]
    learned = find_learned(name)
    if learned is None or not learned.names:
        raise ModelError(
            f"model={name!r} keeps no list of what it draws; it is told in words, any that its "
            "training had."
        )
    found = learned.find(asked)
    if not found:
        meant = learned.nearest(asked)
        remedy = f"did you mean {meant}?" if meant else "ask for fewer words, or for none."
        raise UsageError(f"none of the {len(learned.names):,} names has {asked!r}; {remedy}")
    messages.print_result(
        json.dumps(found, ensure_ascii=False, indent=2) if as_json else "\n".join(found)
    )
