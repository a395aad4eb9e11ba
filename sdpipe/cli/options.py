"""What can be asked for on the command line: each option's type, its help, and where it is shown.

Where the model decides, the default is None, and the help says what that means for v1-4.
"""

import re
from typing import Annotated, Any

import typer

from sdpipe.cli import console
from sdpipe.errors import UsageError
from sdpipe.settings import DEFAULT_OF, OUTPUT, RULES

MODEL = "Model and machine"


def option(panel: str | None, help: str, *names: str, metavar: str, **more: Any) -> Any:
    """An option with a value, called like its parameter unless names are given."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **more)


def flag(panel: str | None, help: str, name: str, **more: Any) -> Any:
    """An option that is there or not."""
    return typer.Option(name, help=help, metavar=" ", rich_help_panel=panel, **more)


def whole(panel: str, help: str, *names: str) -> Any:
    """An option that takes a whole number."""
    return option(panel, help, *names, metavar="N", parser=_parse_int)


def text(name: str, text: str) -> str:
    """Python lets bytes that are no text through, as code points that nothing can encode.

    Raises:
        UsageError: `text`, which messages call `name`, holds such.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is not UTF-8 text: {text!r}.") from error
    return text


def setting(name: str, *, several: bool = False) -> Any:
    """The option of a setting, from the field table; for a sweep it takes several values."""
    rule = RULES[name]
    says_default = rule.unset and DEFAULT_OF[name] is None and not several  # typer says others
    text = f"{rule.help}. Default: {rule.unset}" if says_default else rule.help
    text = re.sub("`([a-z_]+)`", lambda found: _option(found[1]), text).replace("`", "")
    help = f"{text[0].upper()}{text[1:]}."
    names = (f"--{name.replace('_', '-')}", *rule.options)
    if not rule.metavar and not several:
        return flag(rule.panel, help, names[0])
    metavar = "VALUES" if several else rule.metavar
    parser = str if several else rule.parse
    return option(rule.panel, help, *names, metavar=metavar, parser=parser)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}" if name in RULES else name


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


Prompt = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT", help="What to draw; - reads prompts from standard input, one a line."
    ),
]

Model = Annotated[
    str | None,
    option(
        MODEL,
        "emoji (built in), a folder, a .safetensors file or a hub id. Left out: $SDPIPE_MODEL, "
        "else CompVis/stable-diffusion-v1-4.",
        metavar="NAME",
    ),
]
Vae = Annotated[
    str | None,
    option(
        MODEL,
        "In place of the model's own: a folder, a .safetensors file, a hub id.",
        metavar="NAME",
    ),
]
Prediction = Annotated[
    str | None,
    option(
        MODEL,
        "What the U-Net predicts, epsilon or v, where a file of Stable Diffusion 2 does not tell.",
        metavar="NAME",
    ),
]
LoraFiles = Annotated[
    list[str] | None,
    option(
        MODEL,
        "A LoRA, a file or emoji-lcm (built in), and how much of it, 1 if left out; can be given "
        "many times.",
        "--lora",
        metavar="FILE[:WEIGHT]",
    ),
]
EmbeddingFiles = Annotated[
    list[str] | None,
    option(
        MODEL,
        "A textual inversion and the word for it; left out, the file's own, else its name; can be "
        "given many times.",
        "--embedding",
        metavar="FILE[:WORD]",
    ),
]
Device = Annotated[str, option(MODEL, "auto, cpu, mps, cuda, cuda:1.", metavar="NAME")]
Dtype = Annotated[str, option(MODEL, "auto, float32, float16, bfloat16.", metavar="NAME")]

NoOptimize = Annotated[
    bool, flag(MODEL, "Run the networks plainly, as diffusers loads them.", "--no-optimize")
]
Compile = Annotated[bool, flag(MODEL, "Compile the U-Net: a wait first, then faster.", "--compile")]
LowMemory = Annotated[
    bool, flag(MODEL, "On a GPU: only what works is in its memory.", "--low-memory")
]

Out = Annotated[
    str,
    option(
        OUTPUT,
        "A folder, where images are numbered, or a .png, .jpg or .webp file; - is standard output.",
        "--out",
        "-o",
        metavar="PATH",
    ),
]
Overwrite = Annotated[
    bool, flag(OUTPUT, "Replace a file that --out names and that exists.", "--overwrite")
]
Json = Annotated[bool, flag(OUTPUT, "Print JSON, not paths.", "--json")]
PrintJson = Annotated[bool, flag(OUTPUT, "Print JSON.", "--json")]  # where no paths are
Format = Annotated[
    str | None,
    option(OUTPUT, "Of the images in a folder: png, jpg or webp. Default: png.", metavar="NAME"),
]
NoMetadata = Annotated[
    bool,
    flag(
        OUTPUT,
        "Keep prompt and settings out of the files; the mark of a machine-made image stays.",
        "--no-metadata",
    ),
]
NoMark = Annotated[
    bool,
    flag(OUTPUT, "Keep the mark of a machine-made image out of the files.", "--no-mark"),
]

Debug = Annotated[
    bool,
    flag(
        None,
        "Show tracebacks and every warning.",
        "--debug",
        callback=console.set_debug,
        is_eager=True,
        envvar="SDPIPE_DEBUG",
    ),
]
