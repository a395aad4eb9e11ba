"""What a person sees: results on standard output, messages and progress on standard error."""

import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from sdpipe.errors import SdpipeError, SdpipeWarning, UsageError
from sdpipe.io.encoding import escape_control
from sdpipe.settings import DEFAULT_OF, RULES, SAMPLING, ResolvedSettings, label

if TYPE_CHECKING:
    from sdpipe.denoise import Step

DONE, FAILED, WRONG_USAGE = 0, 1, 2

MAX_LINE = 4000  # characters of a message: what others wrote can have any length

_debug = False
_is_output_lost = False


def set_debug(value: bool) -> None:
    """Shows tracebacks and every warning, until `install_warning_printer` is called again."""
    if value:
        install_warning_printer(debug=True)


def open_streams() -> None:
    """Makes the three standard streams usable, whatever the caller closed and the locale says.

    One that is closed becomes /dev/null: the next file that is opened would take its place, and
    get what libraries print there. Characters that an encoding lacks are escaped as Python does it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_status(text: str) -> None:
    """Prints one line on standard error, above a progress bar if there is one."""
    line = f"sdpipe: {escape_control(' '.join(text.split()))}"
    if len(line) > MAX_LINE:
        line = f"{line[:MAX_LINE]} ..."
    with contextlib.suppress(OSError):  # a full disk, a reader that has gone away
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(line, file=sys.stderr)
        else:  # importing tqdm takes a tenth of the time of a refusal
            print(line, file=sys.stderr)


def install_warning_printer(debug: bool) -> None:
    """Prints every `SdpipeWarning` as a line; warnings of libraries only for debugging."""
    global _debug
    _debug = debug

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, SdpipeWarning):
            print_status(f"warning: {message}")
        elif debug:
            print_status(f"warning: {filename}:{lineno}: {category.__name__}: {message}")

    warnings.showwarning = show
    warnings.simplefilter("always", SdpipeWarning)
    if not debug:
        # The libraries' own loggers read these when they are imported.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def print_result(text: str, stream: TextIO | None = None) -> None:
    """Prints a result on standard output at once, or on the stream that it was before.

    A progress bar is cleared for the moment, and drawn again below.

    A reader that has gone away is no error. Where the output cannot be written, as on a full disk,
    a message says so, the work goes on, and `is_output_lost`.
    """
    global _is_output_lost
    try:
        with _without_bars():
            print(escape_control(text), file=stream, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())
        if not isinstance(error, BrokenPipeError):
            _is_output_lost = True
            reason = f"standard output cannot be written ({error.strerror})"
            print_status(f"error: {reason}; files are written all the same.")


def _without_bars() -> contextlib.AbstractContextManager[object]:
    if "tqdm" not in sys.modules:
        return contextlib.nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode(sys.stderr)


def is_output_lost() -> bool:
    """Whether results could not be printed."""
    return _is_output_lost


def report_error(error: Exception) -> int:
    """Prints an error as one paragraph, and returns the exit status for it."""
    if _debug:
        traceback.print_exception(error)
    print_status(f"error: {describe(error)}")
    return WRONG_USAGE if isinstance(error, UsageError) else FAILED


def describe(error: Exception) -> str:
    """An error in a sentence."""
    if isinstance(error, SdpipeError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out of memory; draw fewer images at once (--n) or smaller ones (--dim)."
    kind, what = type(error).__name__, str(error) or "no message"
    hint = "" if _debug else " This is a bug, or a broken installation: --debug shows where."
    return f"{kind}: {what.rstrip('.')}.{hint}"


def print_flagged(path: str, safety: Mapping[str, Any] | None) -> None:
    """Prints a line about an image that the safety checker flagged, none about others."""
    if safety is not None and safety["flagged"]:
        from sdpipe.metadata.info import describe_safety

        print_status(f"{path}: {describe_safety(safety)}")


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Shows a line on a terminal while something takes time."""
    if not sys.stderr.isatty():
        yield
        return
    print(text, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\x1b[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, moved by a call with how many of how many are done."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from tqdm import tqdm

    begin = f"{text} ..."  # the total is known when some of it is done
    with tqdm(desc=text, file=sys.stderr, dynamic_ncols=True, bar_format=begin) as shown:

        def move(done: int, total: int) -> None:
            shown.bar_format, shown.total = None, total
            shown.update(done - shown.n)

        yield move


@contextlib.contextmanager
def image_bar(images: int, done: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with the rate and the time left, moved by how many are done and failed."""
    if not sys.stderr.isatty() or done == images:
        yield lambda done, failed: None
        return
    from tqdm import tqdm

    numbers = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
    options = {"total": images, "initial": done, "unit": " images", "smoothing": 0.05}
    options["bar_format"] = f"{{l_bar}}{{bar}}| {numbers}"
    with tqdm(desc="drawing", file=sys.stderr, dynamic_ncols=True, **options) as shown:

        def move(done: int, failed: int) -> None:
            if failed:
                shown.set_postfix_str(f"{failed} failed", refresh=False)
            shown.update(done - shown.n)

        yield move


@contextlib.contextmanager
def step_bar(images: int) -> Iterator[Callable[["Step"], None]]:
    """A progress bar for the steps of so many images, batch by batch: a consumer of `Step`."""
    with bar("drawing" if images == 1 else f"drawing {images} images") as move:

        def count(step: "Step") -> None:
            before = step.images.start * step.total
            move(before + len(step.images) * (step.index + 1), images * step.total)

        yield count


SUMMARIZED = ("g", "steps", "scheduler", "lms_order")  # elsewhere in a summary, or too well known


def summary(drawn: Sequence[ResolvedSettings], seconds: float) -> str:
    """What was drawn, in a line: what a person needs to draw it again."""
    first, last = drawn[0], drawn[-1]
    parts = [
        "1 image" if len(drawn) == 1 else f"{len(drawn)} images",
        _size(first),
        _seeds(first, last),
        f"{_steps(first)} of {first.scheduler}",
        label("g", first.g),
    ]
    for name, rule in RULES.items():
        value = getattr(first, name)
        if rule.panel == SAMPLING and name not in SUMMARIZED and value != DEFAULT_OF[name]:
            parts.append(label(name, value))
    return ", ".join([*parts, f"{seconds:.1f} s"])


def _steps(settings: ResolvedSettings) -> str:
    taken = settings.num_steps_taken(settings.strength)
    of_all = "" if taken == settings.steps else f"{taken} of "
    more = ""
    if settings.hires_strength is not None:
        more = f" and {settings.num_steps_taken(settings.hires_strength)}"
    return f"{of_all}{settings.steps}{more} step{'s' * (settings.steps != 1 or bool(more))}"


def _size(settings: ResolvedSettings) -> str:
    width, height = settings.output_size
    first = f" from {settings.width} x {settings.height}" if settings.hires_scale else ""
    return f"{width} x {height}{first}"


def _seeds(first: ResolvedSettings, last: ResolvedSettings) -> str:
    one = first.seed == last.seed
    text = f"seed {first.seed}" if one else f"seeds {first.seed} to {last.seed}"
    if first.variation_strength is None:
        return text
    one = first.variation_seed == last.variation_seed
    to = f"{first.variation_seed}" if one else f"{first.variation_seed} to {last.variation_seed}"
    return f"{text}, {100 * first.variation_strength:g} % on the way to {to}"
