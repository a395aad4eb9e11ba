"""What a person is told: results on standard output, all else on standard error."""

import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from sdpipe.errors import SdpipeError, SdpipeWarning, UsageError
from sdpipe.settings import Settings
from sdpipe.values import format_scale, num_steps_taken

FAILED, WRONG_USAGE = 1, 2

_debug = False


def set_debug(value: bool) -> None:
    """Once true, tracebacks and every warning are shown, until `tell_warnings` starts anew."""
    if value:
        tell_warnings(debug=True)


def say(text: str) -> None:
    """One line, above a progress bar if there is one."""
    line = f"sdpipe: {' '.join(text.split())}"
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:  # no bar was ever there, and its import takes a tenth of the time of a refusal
        print(line, file=sys.stderr)


def tell_warnings(debug: bool) -> None:
    """Shows every `SdpipeWarning` as a line, and others, which nobody can act on, for debugging."""
    global _debug
    _debug = debug

    def tell(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, SdpipeWarning):
            say(f"warning: {message}")
        elif debug:
            say(f"warning: {filename}:{lineno}: {category.__name__}: {message}")

    warnings.showwarning = tell
    warnings.simplefilter("always", SdpipeWarning)
    if not debug:
        # The libraries' own loggers read these when they are imported.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def print_result(text: str) -> None:
    """A result on standard output, at once; a reader that has gone away is no error.

    What the output's encoding has no sign for, as in a file's name that is no text, is written as
    Python writes it.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: Exception) -> int:
    """Says what went wrong in one paragraph, and returns the exit status that it deserves."""
    if _debug:
        traceback.print_exception(error)
    if isinstance(error, SdpipeError):
        say(f"error: {error}")
        return WRONG_USAGE if isinstance(error, UsageError) else FAILED
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        say("error: out of memory; draw fewer pictures at once (--n) or smaller ones (--dim).")
        return FAILED
    kind, what = type(error).__name__, str(error) or "no message"
    hint = "" if _debug else " This is a bug, or a broken installation: --debug shows where."
    say(f"error: {kind}: {what.rstrip('.')}.{hint}")
    return FAILED


def say_flagged(path: str, safety: Mapping[str, Any] | None) -> None:
    """One line of a picture that the safety checker flagged; none of another."""
    if safety is not None and safety["flagged"]:
        from sdpipe.metadata.info import describe_safety

        say(f"{path}: {describe_safety(safety)}")


def _guidance(settings: Settings) -> Iterator[str]:
    yield f"g {format_scale(settings.g or 0.0, 'g')}"
    if settings.guidance_rescale:
        yield f"rescale {settings.guidance_rescale:g}"
    if settings.guidance_interval is not None:
        yield "interval {:g},{:g}".format(*settings.guidance_interval)


def _steps(settings: Settings) -> str:
    taken = num_steps_taken(settings.steps or 0, settings.strength or 1)
    whole = "" if taken == settings.steps else f"{taken} of "
    more = ""
    if settings.hires_strength is not None:
        more = f" and {num_steps_taken(settings.steps or 0, settings.hires_strength)}"
    return f"{whole}{settings.steps}{more} steps"


def _size(settings: Settings) -> str:
    width, height = settings.output_size
    first = (
        f" from {settings.width} x {settings.height}" if settings.hires_scale is not None else ""
    )
    return f"{width} x {height}{first}"


def _seeds(first: Settings, last: Settings) -> str:
    one = first.seed == last.seed
    text = f"seed {first.seed}" if one else f"seeds {first.seed} to {last.seed}"
    if first.variation_strength is None:
        return text
    one = first.variation_seed == last.variation_seed
    to = f"{first.variation_seed}" if one else f"{first.variation_seed} to {last.variation_seed}"
    return f"{text}, {100 * first.variation_strength:g} % on the way to {to}"


def summary(drawn: Sequence[Settings], seconds: float) -> str:
    """What was drawn, in a line: what a person needs to draw it again."""
    first, last = drawn[0], drawn[-1]
    one = len(drawn) == 1
    parts = [
        "1 picture" if one else f"{len(drawn)} pictures",
        _size(first),
        _seeds(first, last),
        f"{_steps(first)} of {first.scheduler}",
        *_guidance(first),
        f"{seconds:.1f} s",
    ]
    return ", ".join(parts)
