"""The style of the plots of `sdpipe show`: one sheet, one set of sizes and colours.

This is the only module that imports matplotlib, and only when something is drawn.
"""

import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

import sdpipe
from sdpipe.errors import SdpipeError
from sdpipe.io import lettering
from sdpipe.io.mark import PNG_XMP, to_xmp

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from PIL import Image

P = ParamSpec("P")

WIDTH, MARGIN = 900, 32  # of every sheet; a PNG has SCALE x SCALE pixels for each of these
DOTS_PER_INCH, SCALE = 100, 2
TITLE, TEXT, SMALL = 13.5, 9.5, 8.5  # font sizes in points
CROSS = "\N{MULTIPLICATION SIGN}"
INK, FAINT, EDGE, PALE = "#1e1e22", "#6c6c74", "#dcdce1", "#f3f3f5"

# Okabe and Ito (2008): distinct for the colour-blind, and in print.
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#aa4499"
TINTS = ("#dcebf5", "#fbe6d6", "#d9f0e7", "#f1e1ee")

SEQUENTIAL = "magma"  # for magnitudes: black is zero
HEAT = ("white", "#f6c26b", ORANGE, "#7a1f3d")  # for magnitudes below outlines: white is zero
DIVERGING = "RdBu_r"  # for signed values, centred: white is zero

RULES = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": TEXT,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.labelsize": TEXT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": EDGE,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def with_style(draw: "Callable[P, Figure]") -> "Callable[P, Figure]":
    """Decorates a function that draws: it uses `RULES`, whatever else matplotlib is set to.

    Raises:
        SdpipeError: matplotlib is not installed.
    """

    @functools.wraps(draw)
    def draw_with_style(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        check_matplotlib()
        from matplotlib import style

        with style.context(["default", RULES]):
            return draw(*args, **kwargs)

    return draw_with_style


def check_matplotlib() -> None:
    """Checks that matplotlib is installed, before any work is done.

    Raises:
        SdpipeError: it is not.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise SdpipeError(
            "matplotlib",
            "is needed for plots and is not installed",
            'pip install "sdpipe[show]", or use --json for the numbers alone',
        ) from error


class Sheet:
    """A figure `WIDTH` pixels wide, laid out in pixels from its upper left corner.

    `top` is the height of the title and the fainter line below it.
    """

    def __init__(self, height: float, title: str, subtitle: str) -> None:
        from matplotlib.figure import Figure

        self.height = height + self.top
        size = (WIDTH / DOTS_PER_INCH, self.height / DOTS_PER_INCH)
        self.figure: Figure = Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor="white")
        room = 0.99 * (WIDTH - 2 * MARGIN)
        self.text(MARGIN, 44, shorten(title, TITLE, room), size=TITLE, plain=True)
        self.text(MARGIN, 67, shorten(subtitle, SMALL, room), size=SMALL, color=FAINT, plain=True)

    top = 92

    def text(self, x: float, y: float, text: str, *, plain: bool = False, **looks: Any) -> "Text":
        """Writes a text with its base line at y; in `plain` text a $ is a dollar, not a formula."""
        place = (x / WIDTH, 1 - y / self.height)
        looks = {"va": "baseline", "parse_math": not plain, **looks}
        return self.figure.text(*place, replace_missing_glyphs(text) if plain else text, **looks)

    def note(self, x: float, y: float, text: str, **looks: Any) -> "Text":
        """Writes a small, faint text."""
        return self.text(x, y, text, **{"size": SMALL, "color": FAINT, **looks})

    def axes(self, x: float, y: float, width: float, height: float) -> "Axes":
        """Adds axes with their upper left corner at x, y."""
        below = self.height - y - height
        box = (x / WIDTH, below / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(box)

    def canvas(self) -> "Axes":
        """Adds axes over the whole sheet, in its pixels, to draw shapes on."""
        axes = self.axes(0, 0, WIDTH, self.height)
        axes.set(xlim=(0, WIDTH), ylim=(self.height, 0))
        axes.set_axis_off()
        return axes

    def image(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        shown: "Image.Image | np.ndarray[Any, Any]",
        **looks: Any,
    ) -> "Axes":
        """Shows an image, or an array (h, w) with `cmap` and limits, in a thin frame."""
        axes = self.axes(x, y, width, height)
        # Numbers are shown as cells, images smoothly.
        looks = {"interpolation": "nearest" if "cmap" in looks else "auto", **looks}
        axes.imshow(shown, aspect="auto", **looks)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=EDGE, linewidth=0.8)
        return axes

    def scale(self, x: float, y: float, width: float, of: "Axes", *, height: float = 8) -> "Axes":
        """Adds a bar with the colours of an array and the numbers that they stand for."""
        axes = self.axes(x, y, width, height)
        bar = self.figure.colorbar(of.images[0], cax=axes, orientation="horizontal")
        bar.outline.set_visible(False)
        axes.tick_params(length=0, pad=3)
        return axes


def grid_cells(
    count: int, aspect: float, below: float, *, across: int = 6, gap: float = 12
) -> tuple[list[tuple[float, float, float, float]], float]:
    """Places for images in rows, with `below` pixels for text under each, and the total height.

    A place is x, y, width, height. aspect: height to width. Images are no larger than three in a
    row would be.
    """
    rows = -(-count // across)
    across = max(3, -(-count // rows))
    width = (WIDTH - 2 * MARGIN - gap * (across - 1)) / across
    height = width * aspect
    places = [
        (MARGIN + i % across * (width + gap), i // across * (height + below), width, height)
        for i in range(count)
    ]
    return places, -(-count // across) * (height + below)


def set_log_scale(axes: "Axes") -> None:
    """Makes the y axis logarithmic, with plain numbers, also within a single decade."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 60 * low else (1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(LogLocator(subs=()))
    axes.yaxis.set_major_formatter("{x:g}")


def set_integer_ticks(axes: "Axes") -> None:
    """Puts the ticks of the x axis at integers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def heat_colors(high: float) -> dict[str, Any]:
    """Light colours for magnitudes from 0 to `high`, to draw on: for `Sheet.image`."""
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("heat", HEAT)
    return {"cmap": colors, "vmin": 0, "vmax": high or 1.0}


def draw_box(axes: "Axes", x: float, y: float, width: float, height: float, **looks: Any) -> None:
    """Draws a box with slightly rounded corners on a `Sheet.canvas`."""
    from matplotlib.patches import FancyBboxPatch

    corners = "round,pad=0,rounding_size=4"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=corners, **looks))


def draw_bar(axes: "Axes", x: float, y: float, width: float, height: float, color: str) -> None:
    """Draws a bar on a `Sheet.canvas`."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, facecolor=color, linewidth=0))


@functools.lru_cache(4096)
def text_width(text: str, size: float) -> float:
    """The width of a plain text in pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    font = FontProperties(family=RULES["font.family"], size=size)  # type: ignore[arg-type]
    path = TextPath((0, 0), replace_missing_glyphs(text), prop=font)
    return float(path.get_extents().x1) * DOTS_PER_INCH / 72


def shorten(text: str, size: float, room: float) -> str:
    """A text in one line, or as much of it as fits into `room` pixels, with dots at the end."""
    text = " ".join(text[:1000].split())
    return lettering.shorten(text, room, lambda text: text_width(text, size), dots="…")


def quote(prompt: str, of: int = 1) -> str:
    """A prompt in quotation marks for the title of a sheet, or one `of` two in it, shortened."""
    room = 0.96 * (WIDTH - 2 * MARGIN) / of - 32 * (of - 1)
    return f"“{shorten(prompt, TITLE, room)}”" if prompt.strip() else "the empty prompt"


def replace_missing_glyphs(text: str) -> str:
    """Puts an empty square for every character that the font lacks."""
    letters = _letters()
    return "".join(c if ord(c) in letters else "\u25a1" for c in text)


@functools.cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(str(RULES["font.family"]))).get_charmap())


def encode(figure: "Figure", suffix: str, mark: str | None = None) -> bytes:
    """Encodes a figure as a .png, .svg or .pdf file; equal figures give equal bytes.

    mark: what a PNG says of its source, a term of `io.mark`; None says nothing.
    """
    from matplotlib import rc_context

    dated = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    maker = "Creator" if suffix != ".png" else "Software"
    notes = {maker: f"sdpipe {sdpipe.__version__}", **dated[suffix]}
    if mark is not None and suffix == ".png":
        notes[PNG_XMP] = to_xmp(mark)
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "sdpipe"}):
        figure.savefig(
            buffer,
            format=suffix[1:],
            dpi=SCALE * DOTS_PER_INCH,
            metadata=notes,
        )
    return buffer.getvalue()
