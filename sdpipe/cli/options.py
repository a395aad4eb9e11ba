"""What can be asked for on the command line: each option's type, its help, and where it is shown.

Where the model decides, the default is None, and the help says what that means for v1-4.
"""

from typing import Annotated, Any

import typer

from sdpipe.cli import console as messages
from sdpipe.errors import UsageError
from sdpipe.guidance import scale
from sdpipe.settings import SCHEDULERS

PICTURE, SAMPLING, MODEL, OUTPUT = "Picture", "Sampling", "Model and machine", "Output"
HIRES = "Larger"
BEGINNING = "From a picture"


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


def pictures(init: str | None, mask: str | None) -> dict[str, Any]:
    """The pictures that --init-image and --mask-image name, read; {} where they name none.

    Raises:
        UsageError: as `canvas.take`.
    """
    if init is None and mask is None:
        return {}
    from sdpipe.canvas import take

    return dict(zip(("init_image", "mask_image"), take(init, mask), strict=True))


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def _parse_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


Prompt = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT", help="What to draw; - reads prompts from standard input, one a line."
    ),
]
Negative = Annotated[
    str, option(PICTURE, "What the picture should not show.", "--negative-prompt", metavar="TEXT")
]
Seed = Annotated[
    int | None, whole(PICTURE, "Starts the noise; picture i has seed + i. Drawn if left out.")
]
Variation = Annotated[
    float | None,
    option(
        PICTURE,
        "How far to go over to another seed's noise, 0 to 1: image i to that of --variation-seed "
        "+ i. Left out: 0.1 with --variation-seed.",
        metavar="SHARE",
        parser=_parse_float,
    ),
]
VariationSeed = Annotated[
    int | None, whole(PICTURE, "That other seed, for image 0. Left out: --seed + 1.")
]
N = Annotated[int, whole(PICTURE, "Images of each prompt.", "--n", "-n")]
Dim = Annotated[
    int | None,
    whole(PICTURE, "Width and height, a multiple of 8. The model's own: 512 for v1-4."),
]
Width = Annotated[int | None, whole(PICTURE, "Width alone, in place of --dim.")]
Height = Annotated[int | None, whole(PICTURE, "Height alone.")]

Guidance = Annotated[
    Any,  # what a Scale is, typer has no words for
    option(
        SAMPLING,
        "How strictly to follow the prompt; 1 is no guidance, 12:4 goes from 12 to 4. The model's "
        "own: 7.5 for v1-4.",
        "--g",
        "--guidance-scale",
        metavar="SCALE",
        parser=scale,
    ),
]
Rescale = Annotated[
    float,
    option(
        SAMPLING,
        "Against burnt colours at a high g: how much of its spread the guided output gets back, 0 "
        "to 1.",
        metavar="SHARE",
        parser=_parse_float,
    ),
]
Interval = Annotated[
    str | None,
    option(
        SAMPLING,
        "Guide only between these noise levels, as in 0.3,5; elsewhere g is 1, for half the work.",
        metavar="LOW,HIGH",
    ),
]
Steps = Annotated[
    int | None, whole(SAMPLING, "Denoising steps, 1 to 999. The model's own: 50 for v1-4.")
]
Scheduler = Annotated[
    str | None,
    option(
        SAMPLING,
        f"{', '.join(SCHEDULERS)}. The model's own: lms for v1-4.",
        "--scheduler",
        "--sampler",
        metavar="NAME",
    ),
]
LmsOrder = Annotated[
    int | None,
    whole(
        SAMPLING, "Predictions that a step of lms combines, 1 to 4. The model's own: 4 for v1-4."
    ),
]
Karras = Annotated[bool, flag(SAMPLING, "Space the noise levels as Karras et al. do.", "--karras")]
ClipSkip = Annotated[
    int, whole(SAMPLING, "Layer of the text encoder to listen to, from the last, 1.")
]
Exact = Annotated[
    bool, flag(SAMPLING, "Same bits alone and in a batch: one by one, slower.", "--batch-invariant")
]

Seamless = Annotated[
    str | None,
    option(
        PICTURE,
        "Draw what repeats without a seam: along xy, x or y.",
        metavar="AXES",
    ),
]
Hires = Annotated[
    float | None,
    option(
        HIRES,
        "Draw in two passes: scale the picture up by this, above 1 to 4, and draw over it.",
        metavar="FACTOR",
        parser=_parse_float,
    ),
]
HiresStrength = Annotated[
    float | None,
    option(
        HIRES,
        "How far back to noise for that: above 0, to 1. Left out: 0.5.",
        metavar="SHARE",
        parser=_parse_float,
    ),
]

Init = Annotated[
    str | None,
    option(BEGINNING, "Begin with this picture, not with noise alone.", metavar="PICTURE"),
]
Mask = Annotated[
    str | None,
    option(BEGINNING, "Redraw only where this one, of the same size, is white.", metavar="PICTURE"),
]
Strength = Annotated[
    float | None,
    option(
        BEGINNING,
        "How far back to noise: above 0, to 1. Left out: 0.8, with --mask-image or --outpaint 1.",
        metavar="SHARE",
        parser=_parse_float,
    ),
]
Fit = Annotated[
    str | None,
    option(
        BEGINNING,
        "How it comes to --width and --height: crop, pad or stretch. Left out: crop.",
        metavar="NAME",
    ),
]
Outpaint = Annotated[
    str | None,
    option(
        BEGINNING,
        "Pixels to grow by, multiples of 8, which --width and --height count in.",
        metavar="LEFT,TOP,RIGHT,BOTTOM",
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
        "A LoRA, and how much of it, 1 if left out; can be given many times.",
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
        "A folder, or a .png, .jpg or .webp file. What exists is never overwritten.",
        "--out",
        "-o",
        metavar="PATH",
    ),
]
SaveInt = Annotated[
    bool, flag(OUTPUT, "Keep every step, and a filmstrip, in NAME.steps.", "--save-int")
]
Json = Annotated[bool, flag(OUTPUT, "Print JSON, not paths.", "--json")]
PrintJson = Annotated[bool, flag(OUTPUT, "Print JSON.", "--json")]  # where no paths are
NoMetadata = Annotated[
    bool, flag(OUTPUT, "Keep prompt and settings out of the files.", "--no-metadata")
]

Safety = Annotated[
    str,
    option(
        OUTPUT,
        "off, or flag: the model's own safety checker marks what it finds, and changes nothing.",
        metavar="NAME",
    ),
]
Debug = Annotated[
    bool,
    flag(
        None,
        "Show tracebacks and every warning.",
        "--debug",
        callback=messages.set_debug,
        is_eager=True,
        envvar="SDPIPE_DEBUG",
    ),
]
