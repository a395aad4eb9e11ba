"""What a person has typed, and what the model is told in its place."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from sdpipe.cli import console as messages
from sdpipe.cli import options

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline

AsTyped = Annotated[
    bool,
    options.flag(options.PICTURE, "Mend no typing errors: draw what stands here.", "--as-typed"),
]


def mended(pipe: "Pipeline", prompts: Sequence[str]) -> list[str]:
    """The prompts with their typing errors put right; what was is said."""
    read = [pipe.mended(typed) for typed in prompts]
    for typed, told in zip(prompts, read, strict=True):
        if typed != told:
            name = pipe.components.model.name
            messages.say(
                f'"{typed}" is drawn as "{told}", words that {name} has read; --as-typed draws it '
                "as it is"
            )
    return read
