"""`Settings`: every input of one run, checked when it is made, and the field table behind it.

Each field carries a `Rule`: its check, its parser, its help, its names. The command line, sweeps,
labels, metadata and the table of the reference follow from these rules, so that a new setting is
added here, in the stage that uses it, and in one test. That is why this file has more than
300 lines: the table, the rules between fields and the types made from them belong together.

Needs no torch, no model and no files.
"""

import dataclasses
import difflib
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self, TypedDict

from sdpipe.errors import UsageError
from sdpipe.prompt.syntax import parse
from sdpipe.values import (
    MAX_SIDE,
    Scale,
    check_bool,
    check_choice,
    check_int,
    check_interval,
    check_number,
    check_outpaint,
    check_scale,
    check_side,
    check_text,
    default_hint,
    format_scale,
    format_value,
    num_steps_taken,
    parse_bool,
    parse_int,
    parse_interval,
    parse_number,
    parse_outpaint,
    parse_scale,
)

if TYPE_CHECKING:
    from sdpipe.canvas import Source

SAMPLERS: Mapping[str, tuple[str, ...]] = {
    "lms": ("LMS", "LMS discrete"),
    "ddim": ("DDIM",),
    "pndm": ("PLMS",),
    "euler": ("Euler", "Euler discrete"),
    "euler_a": ("Euler a", "Euler ancestral", "Euler ancestral discrete"),
    "heun": ("Heun", "Heun discrete"),
    "dpm++": ("DPM++ 2M", "DPM++ 2", "DPM solver multistep"),
    "unipc": ("UniPC", "UniPC multistep"),
    "lcm": ("LCM",),
    "tcd": ("TCD",),
    "dpm++_2m_sde": ("DPM++ 2M SDE",),
    "dpm2": ("DPM2", "KDPM2 discrete"),
    "dpm2_a": ("DPM2 a", "DPM2 ancestral", "KDPM2 ancestral discrete"),
    "ddpm": ("DDPM",),
    "deis": ("DEIS", "DEIS multistep"),
}
"""The schedulers, each with its names in other programs; the first is A1111's, where it has such a
sampler. See `find_scheduler`."""

SCHEDULERS = tuple(SAMPLERS)
KARRAS_SCHEDULERS = (
    *("lms", "euler", "heun", "dpm++", "unipc", "dpm++_2m_sde", "dpm2", "dpm2_a", "deis"),
)
ZERO_SNR_SCHEDULERS = (
    *("ddim", "euler", "euler_a", "dpm++", "unipc", "lcm", "tcd", "dpm++_2m_sde", "ddpm"),
)
ETA_SCHEDULERS = ("ddim", "tcd")
# Their steps draw noise; those of `ETA_SCHEDULERS` do with an eta.
RANDOM_SCHEDULERS = ("euler_a", "lcm", "dpm++_2m_sde", "dpm2_a", "ddpm")
TWO_CALL_SCHEDULERS = ("heun", "dpm2", "dpm2_a")  # a step calls the U-Net twice, the last one once
DISTILLED_SCHEDULERS = ("lcm", "tcd")
MAX_DISTILLED_STEPS = 50  # the timesteps at which models for these two are distilled
SPACINGS = ("leading", "linspace", "trailing")
RNGS = ("cpu", "cuda")
PROMPT_EDITS = ("steps", "a1111")
SAFETY = ("off", "flag")
SEAMLESS = ("xy", "x", "y")
FITS = ("crop", "pad", "stretch")

MAX_STEPS = 999  # between the 1000 timesteps of training; with 1000 some schedulers overshoot
MAX_SEED = 2**64 - 1  # the largest that torch.Generator.manual_seed takes
MAX_IMAGES = 100_000
MAX_CLIP_SKIP = 100  # of any text encoder; the layers of a model's are checked when it is known

STRENGTH = 0.8  # the default of diffusers' StableDiffusionImg2ImgPipeline
INPAINT_STRENGTH = 1.0  # and of its StableDiffusionInpaintPipeline
HIRES_STRENGTH = 0.5
VARIATION_STRENGTH = 0.1

DEFAULTS: Mapping[str, Any] = {"g": 7.5, "steps": 50, "scheduler": "lms", "lms_order": 4}
"""What counts where neither the person nor the model says anything; the size is the model's own."""

MODEL_DEFAULTS = ("g", "steps", "width", "height", "scheduler", "lms_order")
"""The settings of which a model may have a default of its own, in its `sdpipe.json`."""

NEEDS_INIT = ("mask_image", "strength", "fit", "outpaint")
"""The settings that mean nothing without `init_image`."""

IMAGE, SAMPLING, OUTPUT = "Image", "Sampling", "Output"
LARGER, FROM_IMAGE = "Larger image", "From an image"


@dataclass(frozen=True)
class ImageRef:
    """Which image it is; its pixels travel beside the settings.

    name: of its file, for people to read; nothing is opened by this name.
    sha256: of its pixels before they were resized, see `io.pixels.pixels_sha256`.
    """

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Everything that the program asks about a setting.

    help: what it does; `names` in backquotes are settings.
    unset: what counts where it is left out; "" needs no word.
    check: from name and value to the value in its type; raises UsageError.
    parse: from what a person typed to the value, or to the text where it is not one.
    format: the other way.
    panel, metavar, options: its group, placeholder and further names on the command line.
    label: a value in a grid or a summary, such as "{} steps".
    sweepable: a sweep takes several values of it; `separator` stands between them.
    ranges: what ranges of it are made of, for a sweep: int, float or nothing.
    a1111, a1111_axis: its name in A1111's parameters, and as an axis of A1111's X/Y/Z plot.
    """

    help: str
    unset: str = ""
    check: Callable[[str, Any], Any]
    parse: Callable[[str], Any] = str
    format: Callable[[Any], str] = format_value
    panel: str = IMAGE
    metavar: str = ""
    options: tuple[str, ...] = ()
    label: str = ""
    sweepable: bool = False
    separator: str = ","
    ranges: type[int] | type[float] | None = None
    a1111: str = ""
    a1111_axis: str = ""


def find_scheduler(name: str) -> tuple[str | None, bool]:
    """The scheduler that another program calls `name`, or None, and whether with Karras' levels.

    Case, spaces and signs do not count, nor does a leading `k_` (k-diffusion) or `sample_`
    (ComfyUI), or a trailing `_gpu` (ComfyUI) or `Scheduler` (diffusers); `pp` is ++.
    """
    name = re.sub(r"^sample_|^k[_ -]|[ _-]?scheduler$|_gpu$", "", name.strip().lower())
    short = re.sub(r"[ _-]karras$", "", name)
    return _SCHEDULER_OF.get(_letters(short)), short != name


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower().replace("+", "p"))


_SCHEDULER_OF = {_letters(n): ours for ours, names in SAMPLERS.items() for n in (ours, *names)}


def setting(default: Any = dataclasses.MISSING, *kinds: Mapping[str, Any], **rule: Any) -> Any:
    """A field of `Settings`: its default, and its rule, of which `kinds` are parts."""
    parts = {name: value for kind in (*kinds, rule) for name, value in kind.items()}
    return dataclasses.field(default=default, metadata={"rule": Rule(**parts)})


def integer(low: int, high: int, remedy: str = "") -> dict[str, Any]:
    """The parts of a rule for whole numbers."""
    check = partial(check_int, low=low, high=high, remedy=remedy)
    return {"check": check, "parse": parse_int, "metavar": "N", "ranges": int}


def number(low: float, high: float, remedy: str = "", *, above: bool = False) -> dict[str, Any]:
    """The parts of a rule for numbers."""
    check = partial(check_number, low=low, high=high, remedy=remedy, above=above)
    return {"check": check, "parse": parse_number, "metavar": "NUMBER", "ranges": float}


def choice(*choices: str) -> dict[str, Any]:
    """The parts of a rule for one of some words."""
    return {"check": partial(check_choice, choices=choices), "metavar": "NAME"}


def check_prompt(name: str, value: object) -> str:
    """A prompt whose brackets can be read; raises UsageError otherwise."""
    text = check_text(name, value)
    parse(text, name)
    return text


def check_scheduler(name: str, value: object) -> str:
    """The name of a scheduler; raises UsageError otherwise, with ours for another program's."""
    if value in SCHEDULERS or not isinstance(value, str):
        return check_choice(name, value, SCHEDULERS)
    ours, has_karras = find_scheduler(value)
    called = [f"it is called {ours} here"] if ours is not None else []
    if has_karras or value.lower() == "karras":
        called.append("Karras' noise levels are the setting karras (--karras)")
    if not called:
        return check_choice(name, value, SCHEDULERS)
    raise UsageError(f"{name}={value[:80]!r}", "is not known", ", and ".join(called))


def check_image_ref(name: str, value: object) -> ImageRef:
    """Which image it is, from an `ImageRef` or a mapping of its fields.

    Raises:
        UsageError: otherwise.
    """
    if isinstance(value, ImageRef):
        value = {"name": value.name, "sha256": value.sha256}
    if isinstance(value, Mapping) and set(value) == {"name", "sha256"}:
        file, sha256 = value["name"], value["sha256"]
        if isinstance(file, str) and re.fullmatch("[0-9a-f]{64}", str(sha256)):
            return ImageRef(file, sha256)
    raise UsageError(
        f"{name}={str(value)[:80]!r}",
        "is not the name and the SHA-256 of an image, which is all that settings hold of one",
        "give the image itself to Pipeline.generate",
    )


TEXT = {"check": check_prompt, "metavar": "TEXT"}
SIDE = {"check": check_side, "parse": parse_int, "metavar": "N", "ranges": int, "sweepable": True}
FLAG = {"check": check_bool, "parse": parse_bool}
FILE = {"check": check_image_ref, "format": attrgetter("name"), "metavar": "FILE"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every input of one run, by the rules in the fields' metadata, see `RULES`.

    None means unset: the model's own value, see `resolved`. docs/reference/settings.md has a table.

    Raises:
        UsageError: a value breaks its rule, or two of them do not go together.
    """

    prompt: str = setting(**TEXT, help="what to draw, with weights and changes", label="{}")
    negative_prompt: str = setting(
        "", TEXT, help="what the image should not show", unset='""', label="not: {}"
    )
    prompt_edits: str = setting(
        "steps",
        choice(*PROMPT_EDITS),
        help="when the prompts' changes come: steps, or a1111, a step later as in A1111's web UI",
        unset="steps",
    )
    seed: int | None = setting(
        None,
        integer(0, MAX_SEED, "leave it out to draw one at random"),
        help="starts the noise; image i has `seed` + i",
        unset="drawn, and reported",
        sweepable=True,
        a1111="Seed",
    )
    n: int = setting(
        1, integer(1, MAX_IMAGES), help="how many images of each prompt", options=("-n",)
    )
    dim: InitVar[int | None] = setting(
        None,
        SIDE,
        help="`width` and `height` in pixels, a multiple of 8",
        unset="the model's own size, 512 for v1-4",
        label="{0} x {0}",
    )
    width: int | None = setting(None, SIDE, help="the width alone", label="{} wide")
    height: int | None = setting(None, SIDE, help="the height alone", label="{} high")
    seamless: str | None = setting(
        None,
        choice(*SEAMLESS),
        help="repeat without a seam along xy, x or y",
        metavar="AXES",
    )
    variation_strength: float | None = setting(
        None,
        number(0, 1, "0 is the seed's own image, 1 that of the variation seed"),
        help="how far the noise moves towards that of `variation_seed`, 0 to 1; all images then "
        "have `seed`",
        unset=f"{VARIATION_STRENGTH} with `variation_seed`",
        sweepable=True,
        label="variation {}",
        a1111="Variation seed strength",
        a1111_axis="Var. strength",
    )
    variation_seed: int | None = setting(
        None,
        integer(0, MAX_SEED),
        help="the other seed; image i moves towards `variation_seed` + i",
        unset="`seed` + 1",
        sweepable=True,
        label="towards seed {}",
        a1111="Variation seed",
        a1111_axis="Var. seed",
    )
    rng: str = setting(
        "cpu",
        choice(*RNGS),
        help="whose numbers the noise is: cpu, or cuda for those that torch draws on a GPU, made "
        "on any machine",
        unset="cpu",
    )
    g: Scale | None = setting(
        None,
        help="guidance scale: `uncond + g * (cond - uncond)`, 1 is the prompt alone; 12:4, in "
        "Python (12, 4), goes from 12 to 4",
        unset="the model's own, 7.5 for v1-4",
        check=check_scale,
        parse=parse_scale,
        format=format_scale,
        panel=SAMPLING,
        metavar="SCALE",
        options=("--guidance-scale",),
        sweepable=True,
        ranges=float,
        a1111="CFG scale",
        a1111_axis="CFG Scale",
    )
    guidance_rescale: float = setting(
        0.0,
        number(0, 1, "0 leaves the guided output as it is, 0.7 is a good value"),
        help="how much of its spread the guided output gets back, 0 to 1, against burnt colours",
        unset="0",
        panel=SAMPLING,
        sweepable=True,
        label="rescale {}",
    )
    guidance_interval: tuple[float, float] | None = setting(
        None,
        help="guide only between these noise levels, as in 0.3,5; elsewhere `g` is 1",
        unset="all of them",
        check=check_interval,
        parse=parse_interval,
        panel=SAMPLING,
        metavar="LOW,HIGH",
        sweepable=True,
        separator=";",
        label="interval {}",
    )
    steps: int | None = setting(
        None,
        integer(1, MAX_STEPS, default_hint(50)),
        help=f"denoising steps, 1 to {MAX_STEPS}",
        unset="the model's own, 50 for v1-4",
        panel=SAMPLING,
        sweepable=True,
        label="{} steps",
        a1111="Steps",
    )
    scheduler: str | None = setting(
        None,
        check=check_scheduler,
        metavar="NAME",
        help=f"the sampler: {', '.join(SCHEDULERS)}",
        unset="the model's own, lms for v1-4",
        panel=SAMPLING,
        options=("--sampler",),
        sweepable=True,
        label="{}",
        a1111_axis="Sampler",
    )
    lms_order: int | None = setting(
        None,
        integer(1, 4),
        help="predictions that a step of lms combines, 1 to 4",
        unset="the model's own, 4 for v1-4",
        panel=SAMPLING,
        sweepable=True,
        label="order {}",
    )
    karras: bool = setting(
        False,
        FLAG,
        help="space the noise levels as Karras et al. (2022) do",
        panel=SAMPLING,
        sweepable=True,
    )
    spacing: str | None = setting(
        None,
        choice(*SPACINGS),
        help="where the steps are (Lin et al. 2023): trailing begins at the last timestep of "
        "training, leading ends at the first, linspace does both",
        unset="the model's own, else the scheduler's",
        panel=SAMPLING,
        sweepable=True,
        label="{} steps",
    )
    zero_snr: bool = setting(
        False,
        FLAG,
        help="rescale the noise levels so that the first is noise alone (Lin et al. 2023), for "
        "models that predict v",
        panel=SAMPLING,
        sweepable=True,
    )
    eta: float | None = setting(
        None,
        number(0, 1, "0 adds no noise, 1 as much as DDPM"),
        help="how much noise a step of ddim or tcd adds, 0 to 1 (Song et al. 2021)",
        unset="0",
        panel=SAMPLING,
        sweepable=True,
        a1111="Eta DDIM",
        a1111_axis="Eta",
    )
    clip_skip: int = setting(
        1,
        integer(1, MAX_CLIP_SKIP, "1 is the text encoder's last layer, 2 the one before"),
        help="the layer of the text encoder that is used, counted from the last",
        unset="1",
        panel=SAMPLING,
        sweepable=True,
        label="clip skip {}",
        a1111="Clip skip",
    )
    batch_invariant: bool = setting(
        False,
        FLAG,
        help="draw each image alone, so that it has the same bits in any batch; slower",
        panel=SAMPLING,
    )
    hires_scale: float | None = setting(
        None,
        number(1, 4, "2 doubles width and height", above=True),
        help="draw in two passes: enlarge the image by this, above 1 to 4, and redraw it",
        unset="one pass",
        panel=LARGER,
        sweepable=True,
        label="hires {}",
        a1111="Hires upscale",
        a1111_axis="Hires upscale",
    )
    hires_strength: float | None = setting(
        None,
        number(0, 1, above=True),
        help="how far back to noise the second pass goes, above 0 to 1",
        unset=f"{HIRES_STRENGTH} with `hires_scale`",
        panel=LARGER,
        sweepable=True,
        label="hires strength {}",
    )
    init_image: ImageRef | None = setting(
        None,
        FILE,
        help="begin with this image, a file or in Python a PIL image, in place of pure noise",
        panel=FROM_IMAGE,
        label="from {}",
    )
    mask_image: ImageRef | None = setting(
        None,
        FILE,
        help="redraw only where this image, of the same size, is white",
        panel=FROM_IMAGE,
        label="where {} is white",
    )
    strength: float | None = setting(
        None,
        number(0, 1, "near 0 the image stays as it is, at 1 hardly anything of it", above=True),
        help="how far back to noise `init_image` goes, above 0 to 1",
        unset=f"{STRENGTH}, with `mask_image` or `outpaint` {INPAINT_STRENGTH:g}",
        panel=FROM_IMAGE,
        sweepable=True,
        a1111_axis="Denoising",
    )
    fit: str | None = setting(
        None,
        choice(*FITS),
        help="how to fit `init_image` to `width` and `height`: crop, pad or stretch",
        unset="crop",
        panel=FROM_IMAGE,
    )
    outpaint: tuple[int, int, int, int] | None = setting(
        None,
        help="pixels to grow by, multiples of 8; `width` and `height` include them",
        check=check_outpaint,
        parse=parse_outpaint,
        panel=FROM_IMAGE,
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        separator=";",
    )
    save_int: bool = setting(
        False, FLAG, help="keep every step, and a filmstrip, in NAME.steps", panel=OUTPUT
    )
    safety: str = setting(
        "off",
        choice(*SAFETY),
        help="flag: the model's own safety checker marks what it finds, and changes nothing",
        unset="off",
        panel=OUTPUT,
    )

    def __new__(cls, **values: Any) -> Self:
        """Refuses unknown names as `Pipeline.generate` does; copies and pickles give none."""
        check_kwargs(values)
        return super().__new__(cls)

    def __post_init__(self, dim: int | None) -> None:
        def keep(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if dim is not None:
            if self.width is not None or self.height is not None:
                raise UsageError(
                    f"dim={dim}", "sets width and height", "give either dim or the other two"
                )
            keep("width", check_side("dim", dim))
            keep("height", self.width)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or DEFAULT_OF[field.name] is not None:
                keep(field.name, RULES[field.name].check(field.name, value))
        self._check_seeds()
        self._check_scheduler()
        self._check_init_image()
        self._check_hires()
        for name in ("strength", "hires_strength"):
            self._check_strength(name, getattr(self, name))

    def _check_seeds(self) -> None:
        """The last seed of a run must be one, too."""
        name = "variation_seed" if self.is_variation else "seed"
        if getattr(self, name) is not None:
            check_int(name, getattr(self, name), 0, MAX_SEED - self.n + 1)

    def _check_scheduler(self) -> None:
        name = DEFAULTS["scheduler"] if self.scheduler is None else self.scheduler
        if self.karras and name not in KARRAS_SCHEDULERS:
            raise UsageError(
                f"scheduler={name!r}",
                "has no Karras noise levels",
                f"leave karras out, or use {', '.join(KARRAS_SCHEDULERS)}",
            )
        if self.lms_order is not None and name != "lms":
            raise UsageError(
                f"lms_order={self.lms_order}",
                f"is for the scheduler lms, not for {name}",
                "leave one of the two out",
            )
        if self.eta is not None and self.scheduler not in (None, *ETA_SCHEDULERS):
            raise UsageError(
                f"eta={self.eta:g}",
                f"is for the schedulers {' and '.join(ETA_SCHEDULERS)}, not for {self.scheduler}",
                "leave one of the two out",
            )
        if name in DISTILLED_SCHEDULERS and (self.steps or 0) > MAX_DISTILLED_STEPS:
            raise UsageError(
                f"steps={self.steps} with the scheduler {name}",
                f"is more than the {MAX_DISTILLED_STEPS} timesteps that it chooses from",
                f"use 1 to {MAX_DISTILLED_STEPS}; models made for {name} take 1 to 8",
            )
        if self.spacing is not None and name in DISTILLED_SCHEDULERS:
            raise UsageError(
                f"spacing={self.spacing!r}",
                f"is not for {name}, which takes the timesteps that its models learnt",
                "leave one of the two out",
            )
        if self.zero_snr and self.scheduler not in (None, *ZERO_SNR_SCHEDULERS):
            raise UsageError(
                f"scheduler={name!r}",
                "has no noise levels of zero terminal SNR",
                f"leave zero_snr out, or use {', '.join(ZERO_SNR_SCHEDULERS)}",
            )

    def _check_init_image(self) -> None:
        given = [name for name in NEEDS_INIT if getattr(self, name) is not None]
        if self.init_image is None and given:
            raise UsageError(
                given[0],
                "needs an image to begin with",
                f"give init_image, or leave {given[0]} out",
            )
        if self.outpaint is None:
            return
        left, top, right, bottom = self.outpaint
        for name, grown in (("width", left + right), ("height", top + bottom)):
            side = getattr(self, name)
            if side is not None and side < grown + 8:
                raise UsageError(
                    f"{name}={side}",
                    f"is that of the finished image, of which outpaint adds {grown}",
                    f"use {grown + 8} or more",
                )

    def _check_hires(self) -> None:
        if self.hires_scale is None:
            if self.hires_strength is not None:
                raise UsageError(
                    f"hires_strength={self.hires_strength:g}",
                    "needs a second pass",
                    "give hires_scale, or leave hires_strength out",
                )
            return
        if self.init_image is not None:
            raise UsageError(
                f"hires_scale={self.hires_scale:g}",
                "does not go together with init_image",
                "give a larger width or height, to which init_image is resized",
            )
        for name, side in zip(("width", "height"), self.output_size, strict=True):
            if side > MAX_SIDE:
                raise UsageError(
                    f"{name}={getattr(self, name)} with hires_scale={self.hires_scale:g}",
                    f"makes {side} pixels, and a side has up to {MAX_SIDE}",
                    "use a smaller one of the two",
                )

    def _check_strength(self, name: str, strength: float | None) -> None:
        """At least one step must be left to take."""
        if strength is None or self.steps is None or num_steps_taken(self.steps, strength):
            return
        least = -(-1000 // self.steps) / 1000
        raise UsageError(
            f"{name}={strength:g}",
            f"leaves no step of {self.steps} to take",
            f"use {least:g} or more, or more steps",
        )

    @property
    def output_size(self) -> tuple[int, int]:
        """Width and height of the finished image, 0 where unknown; multiples of 8."""
        width, height = self.width or 0, self.height or 0
        if self.hires_scale is None:
            return width, height
        return round(width * self.hires_scale / 8) * 8, round(height * self.hires_scale / 8) * 8

    @property
    def is_variation(self) -> bool:
        """Whether all images have one seed, and a variation seed of their own."""
        return self.variation_strength is not None or self.variation_seed is not None

    def resolved(self, defaults: Mapping[str, Any]) -> "ResolvedSettings":
        """Fills what is unset: from `defaults`, a model's own values, else from `DEFAULTS`.

        `defaults` must hold width and height. Only lms has an lms_order. Where the scheduler is
        the model's own, so are its Karras noise levels. A seed is drawn.

        Raises:
            UsageError: the person's values and the model's do not go together.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}

        def fill(name: str, value: Any) -> None:
            values[name] = value if values[name] is None else values[name]

        known = {**DEFAULTS, **defaults}
        if self.scheduler is None and known.get("karras"):
            values["karras"] = True
        for name in MODEL_DEFAULTS:
            if name != "lms_order" or values["scheduler"] == "lms":
                fill(name, known.get(name))
        fill("seed", secrets.randbelow(2**32))
        if self.init_image is not None:
            whole = self.mask_image is None and self.outpaint is None
            fill("strength", STRENGTH if whole else INPAINT_STRENGTH)
            fill("fit", "crop")
        if self.hires_scale is not None:
            fill("hires_strength", HIRES_STRENGTH)
        if self.is_variation:
            fill("variation_strength", VARIATION_STRENGTH)
            other = values["seed"] + 1
            fill("variation_seed", other if other + self.n - 1 <= MAX_SEED else 0)
        return ResolvedSettings(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types, in the order of the fields."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings that a mapping describes.

        Raises:
            UsageError: an unknown key, no prompt, or a value that breaks its rule.
        """
        if not isinstance(values, Mapping):
            raise UsageError(f"{str(values)[:80]!r}", "is not an object of names and values")
        for name in sorted(map(str, values)):
            check_name(name)
        if "prompt" not in values:
            raise UsageError("settings", "have no prompt", "say what the image shows")
        return cls(**values)

    def to_json(self) -> str:
        """The settings as one line of JSON, which `from_json` reads."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The settings that `to_json` wrote. Raises UsageError on anything else."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UsageError("settings", f"are not readable as JSON: {error}") from error
        return cls.from_dict(values)


_FIELDS = Settings.__dataclass_fields__  # dim among them, which `fields` leaves out
RULES: Mapping[str, Rule] = {name: field.metadata["rule"] for name, field in _FIELDS.items()}
DEFAULT_OF: Mapping[str, Any] = {name: field.default for name, field in _FIELDS.items()}


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings(Settings):
    """Settings with every value that a run needs, as `Settings.resolved` makes them.

    What was not asked for is still None: a variation, a second pass, an initial image.
    """

    g: Scale
    steps: int
    seed: int
    width: int
    height: int
    scheduler: str

    def __post_init__(self, dim: int | None) -> None:
        super().__post_init__(dim)
        for name in ("g", "steps", "seed", "width", "height", "scheduler"):
            if getattr(self, name) is None:
                raise UsageError(f"{name}=None", "is not resolved", "give it a value")

    def num_steps_taken(self, strength: float | None = None) -> int:
        """How many of the steps a pass takes, the last ones; None is a pass from pure noise."""
        return self.steps if strength is None else num_steps_taken(self.steps, strength)

    def per_image(self) -> list["ResolvedSettings"]:
        """The settings of every image of the run, each with n 1.

        Image i has seed + i; of variations all have the seed, and image i variation_seed + i.
        """
        if (first := self.variation_seed) is not None:
            return [dataclasses.replace(self, variation_seed=first + i, n=1) for i in range(self.n)]
        return [dataclasses.replace(self, seed=self.seed + i, n=1) for i in range(self.n)]


class GenerateKwargs(TypedDict, total=False):
    """What `Pipeline.generate` takes beside the prompt: the fields of `Settings`, none required.

    `init_image` and `mask_image` are the images themselves, or their files. A list of seeds is an
    image of each.
    """

    negative_prompt: str
    prompt_edits: str
    seed: int | Sequence[int] | None
    n: int
    dim: int | None
    width: int | None
    height: int | None
    seamless: str | None
    variation_strength: float | None
    variation_seed: int | None
    rng: str
    g: Scale | None
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    steps: int | None
    scheduler: str | None
    lms_order: int | None
    karras: bool
    spacing: str | None
    zero_snr: bool
    eta: float | None
    clip_skip: int
    batch_invariant: bool
    hires_scale: float | None
    hires_strength: float | None
    init_image: "Source | None"
    mask_image: "Source | None"
    strength: float | None
    fit: str | None
    outpaint: Sequence[int] | None
    save_int: bool
    safety: str


OTHER_NAMES = {
    "g": "guidance_scale guidance cfg_scale cfg scale",
    "steps": "num_inference_steps ddim_steps sample_steps sampling_steps",
    "seed": "generator noise_seed",
    "n": "num_images_per_prompt num_images batch_count batch_size n_samples n_iter b",
    "scheduler": "sampler sampler_name sampler_index sampling_method plms",
    "karras": "use_karras_sigmas schedule schedule_type",
    "spacing": "timestep_spacing",
    "zero_snr": "rescale_betas_zero_snr ztsnr zero_terminal_snr",
    "eta": "ddim_eta",
    "negative_prompt": "negative neg_prompt neg",
    "width": "w",
    "height": "h",
    "width and height": "size resolution",
    "init_image": "image init_images init_img input_image i",
    "mask_image": "mask mask_img",
    "strength": "denoising_strength denoise",
    "seamless": "tiling",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength variation_amount",
    "hires_scale": "enable_hr hr_scale hires_fix hires_upscale",
    "on_step": "callback_on_step_end callback",
    "model": "ckpt ckpt_path checkpoint model_path m",
    "vae": "vae_path",
    "lora": "lora_model_dir lora_path",
    "embedding": "embd_dir textual_inversion",
    "dtype": "torch_dtype precision type",
    "low_memory": "lowvram medvram offload_to_cpu",
    "out": "output outdir output_dir",
    "prompt": "p",
}
"""What settings and options are called in diffusers, A1111's API, CompVis' scripts and
stable-diffusion.cpp, by our name."""

_OUR_NAMES = {other: ours for ours, others in OTHER_NAMES.items() for other in others.split()}


def our_name(name: str) -> str | None:
    """Our name for a setting or an option of another program; None if there is none."""
    return _OUR_NAMES.get(name.strip("-").replace("-", "_").lower())


def check_kwargs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as a new dict.

    Raises:
        TypeError: no setting has such a name; those of other programs are answered with ours.
    """
    for name in given:
        if name not in RULES:
            raise TypeError(f"there is no setting {name!r}; {_meant(name)}")
    return dict(given)


def check_name(name: str) -> str:
    """The name of a setting. Raises UsageError otherwise."""
    if name not in RULES:
        raise UsageError(f"setting {name!r}", "is not known", _meant(name))
    return name


def _meant(name: str) -> str:
    ours = our_name(name)
    if ours is not None and (ours == "on_step" or set(ours.split(" and ")) <= set(RULES)):
        return f"here it is called {ours}"
    near = difflib.get_close_matches(name, RULES, 1)
    return f"did you mean {near[0]}?" if near else f"the settings are {', '.join(RULES)}"


def label(name: str, value: Any) -> str:
    """A value of a setting in words that need no heading: "20 steps", "g 7.5", "no karras"."""
    rule = RULES[name]
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    text = rule.format(value)
    if not text:
        return f"(no {words})"
    return rule.label.format(text) if rule.label else f"{words} {text}"
