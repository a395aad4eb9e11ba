"""`Settings`: every input of one picture, checked as soon as it is written down.

The same dataclass is the configuration, what the command line mirrors and what a picture's
metadata holds. It knows nothing of torch, models or files.
"""

import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass
from typing import Any, Self

from sdpipe.errors import UsageError
from sdpipe.guidance import Scale, check_interval, check_rescale, check_scale
from sdpipe.init import (
    ABOUT_IT,
    FITS,
    STRENGTH,
    STRENGTH_OF_A_PART,
    PictureId,
    check_outpaint,
    check_strength,
    picture_id,
    steps_taken,
)
from sdpipe.prompt.syntax import parse
from sdpipe.values import MAX_SIDE, check_hires, check_side, check_variation, check_whole, leave_out

SCHEDULERS = ("lms", "ddim", "pndm", "euler", "euler_a", "heun", "dpm++", "unipc")
SAFETY = ("off", "flag")
KARRAS_SCHEDULERS = ("lms", "euler", "heun", "dpm++", "unipc")
# Their points run from the last training timestep to the first, or count up from the first: a
# single one is the first, where there is hardly any noise.
NEED_TWO_STEPS = ("lms", "ddim", "pndm", "euler", "euler_a", "heun")

SEAMLESS = ("xy", "x", "y")

MAX_STEPS = 999  # between the 1000 timesteps that models are trained on; with 1000 some go over
MAX_SEED = 2**64 - 1  # the largest that torch.Generator.manual_seed takes
MAX_IMAGES = 100_000
HIRES_STRENGTH = 0.5  # of a second pass, where nobody says one
VARIATION = 0.1  # where a variation is asked for and nobody says how much of one
MAX_CLIP_SKIP = 100  # layers of a text encoder; how many a model's has is checked once it is there

FALLBACKS: Mapping[str, Any] = {"g": 7.5, "steps": 50, "scheduler": "lms", "lms_order": 4}
"""What holds where neither the person nor the model says anything; the size is the model's own."""

MODEL_DEFAULTS = ("g", "steps", "width", "height", "scheduler", "lms_order")
"""The settings for which a model may carry a default of its own, in its `sdpipe.json`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every input of one run. None means unset: the model's own value is taken, see `resolved`.

    prompt: what the picture shows; weights and other signs are those of `sdpipe.prompt.syntax`.
    negative_prompt: what it should not show; takes the place of the empty prompt in the guidance.
    g: guidance scale: 1 is the conditional prediction, 0 the unconditional one. A pair goes from
        the one at the first step to the other at the last, in equal parts.
    guidance_rescale: how much of its spread the guided output gets back, as Lin et al. (2023) do
        it: 0, nothing, to 1.
    guidance_interval: (low, high), sigmas: outside of them the prompt alone is listened to, as with
        g 1 (Kynkäänniemi et al. 2024). None is all noise levels.
    steps: denoising steps, 1 to 999.
    seed: starts the noise, 0 to 2**64 - 1; image i of a run has seed + i. None draws one.
    variation_strength: how far the starting noise goes over to that of variation_seed, 0 to 1, see
        `latents.slerp`. All images of the run then have the seed, and image i variation_seed + i.
        None is 0.1 with variation_seed, and else no variation at all.
    variation_seed: the noise that image 0 goes over to. None is seed + 1.
    width, height: pixels, multiples of 8; `dim` sets both.
    n: how many pictures.
    scheduler: one of `SCHEDULERS`; None is the model's own, "lms" where it names none.
    lms_order: 1 to 4 past predictions that a step of LMS combines; 4 where the model names none.
    karras: space the noise levels as Karras et al. (2022), equation 5.
    hires_scale: draw in two passes: the picture is scaled up by this factor, above 1 to 4, noised
        and denoised again. `output_size` is its size then.
    hires_strength: how much of the way back to noise the second pass goes, as strength does for
        init_image. None is 0.5.
    seamless: "xy", "x" or "y": left and right, top and bottom, or both go on into each other, so
        that the picture repeats without a seam.
    clip_skip: the text encoder's layer that is listened to, counted from the last, which is 1.
    batch_invariant: draw each image by itself, so that it is the same bits in any batch.
    save_int: keep what happens at every step.
    safety: "flag" has the model's own safety checker look at the finished picture, and mark it
        where it finds something; "off" does not.
    init_image: the picture to begin with, in place of noise alone; its pixels travel beside these.
    mask_image: a picture of the same size whose white is redrawn, while its black stays.
    strength: how much of the way back to noise init_image goes, above 0 to 1: of the steps, that
        many are taken. None is 0.8, and 1 with mask_image or outpaint.
    fit: how init_image comes to width x height: "crop", "pad" or "stretch". None is crop.
    outpaint: pixels that init_image grows by, (left, top, right, bottom), multiples of 8;
        width and height include them; what is new is redrawn.

    Raises:
        UsageError: a value breaks its rule; the message has the value, the rule and the remedy.
    """

    prompt: str
    negative_prompt: str = ""
    g: Scale | None = None
    steps: int | None = None
    seed: int | None = None
    variation_strength: float | None = None
    variation_seed: int | None = None
    width: int | None = None
    height: int | None = None
    n: int = 1
    scheduler: str | None = None
    lms_order: int | None = None
    karras: bool = False
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    hires_scale: float | None = None
    hires_strength: float | None = None
    seamless: str | None = None
    clip_skip: int = 1
    batch_invariant: bool = False
    save_int: bool = False
    safety: str = "off"
    init_image: PictureId | None = None
    mask_image: PictureId | None = None
    strength: float | None = None
    fit: str | None = None
    outpaint: tuple[int, int, int, int] | None = None
    dim: InitVar[int | None] = None

    def __post_init__(self, dim: int | None) -> None:
        def keep(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in ("prompt", "negative_prompt"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{name}={getattr(self, name)!r} is not text; give a string.")
            parse(getattr(self, name), name)
        for name in ("karras", "batch_invariant", "save_int"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r} is not true or false.")
        if dim is not None:
            if self.width is not None or self.height is not None:
                raise UsageError("dim sets both width and height; give either dim or those two.")
            keep("width", check_side("dim", dim))
            keep("height", self.width)
        for name in ("width", "height"):
            if (side := getattr(self, name)) is not None:
                keep(name, check_side(name, side))
        if self.g is not None:
            keep("g", check_scale(self.g))
        keep("guidance_rescale", check_rescale(self.guidance_rescale))
        keep("guidance_interval", check_interval(self.guidance_interval))
        if self.steps is not None:
            remedy = leave_out(FALLBACKS["steps"])
            keep("steps", check_whole("steps", self.steps, 1, MAX_STEPS, remedy))
        keep("n", check_whole("n", self.n, 1, MAX_IMAGES))
        if self.seed is not None:
            remedy = "leave it out to have one drawn"
            last = MAX_SEED if self.is_variation else MAX_SEED - self.n + 1
            keep("seed", check_whole("seed", self.seed, 0, last, remedy))
        self._check_variation(keep)
        if self.lms_order is not None:
            keep("lms_order", check_whole("lms_order", self.lms_order, 1, 4))
        remedy = "1 is the text encoder's last layer, 2 the one before"
        keep("clip_skip", check_whole("clip_skip", self.clip_skip, 1, MAX_CLIP_SKIP, remedy))
        for name in ("init_image", "mask_image"):
            keep(name, picture_id(name, getattr(self, name)))
        keep("strength", check_strength(self.strength, self.steps))
        keep("outpaint", check_outpaint(self.outpaint))
        keep("hires_strength", check_strength(self.hires_strength, self.steps, "hires_strength"))
        self._check_hires(keep)
        if self.seamless is not None and self.seamless not in SEAMLESS:
            raise UsageError(
                f"seamless={self.seamless!r} is not known; the known are {', '.join(SEAMLESS)}."
            )
        if self.safety not in SAFETY:
            raise UsageError(
                f"safety={self.safety!r} is not known; the known are {', '.join(SAFETY)}."
            )
        self._check_init()
        self._check_scheduler()

    def _check_variation(self, keep: Callable[[str, object], None]) -> None:
        if self.variation_strength is not None:
            keep("variation_strength", check_variation(self.variation_strength))
        if self.variation_seed is not None:
            last = MAX_SEED - self.n + 1
            keep("variation_seed", check_whole("variation_seed", self.variation_seed, 0, last))

    def _check_hires(self, keep: Callable[[str, object], None]) -> None:
        if self.hires_scale is None:
            if self.hires_strength is not None:
                raise UsageError(
                    f"hires_strength={self.hires_strength:g} is of a second pass, and there is "
                    "none; give hires_scale, or leave hires_strength out."
                )
            return
        keep("hires_scale", check_hires(self.hires_scale))
        if self.init_image is not None:
            raise UsageError(
                f"hires_scale={self.hires_scale:g} draws a picture and goes over it a second "
                "time, and init_image is a picture already; leave hires_scale out and give a "
                "larger width or height: init_image is brought to that."
            )
        for name, side in zip(("width", "height"), self.output_size, strict=True):
            if side > MAX_SIDE:
                raise UsageError(
                    f"{name}={getattr(self, name)} with hires_scale={self.hires_scale:g} makes "
                    f"{side} pixels, and a side has up to {MAX_SIDE}; take less of one of the two."
                )

    @property
    def output_size(self) -> tuple[int, int]:
        """Width and height of the finished image, 0 where unknown; multiples of 8."""
        width, height = self.width or 0, self.height or 0
        if self.hires_scale is None:
            return width, height
        return round(width * self.hires_scale / 8) * 8, round(height * self.hires_scale / 8) * 8

    def _check_scheduler(self) -> None:
        name = FALLBACKS["scheduler"] if self.scheduler is None else self.scheduler
        if name not in SCHEDULERS:
            raise UsageError(
                f"scheduler={name!r} is not known; the known ones are {', '.join(SCHEDULERS)}."
            )
        if self.karras and name not in KARRAS_SCHEDULERS:
            raise UsageError(
                f"scheduler={name!r} has no Karras noise levels; leave karras out, or take one of "
                f"{', '.join(KARRAS_SCHEDULERS)}."
            )
        if self.lms_order is not None and name != "lms":
            raise UsageError(
                f"lms_order={self.lms_order} belongs to the scheduler lms, not to {name}; leave "
                "one of the two out."
            )
        if self.steps == 1 and name in NEED_TWO_STEPS:
            raise UsageError(
                f"steps=1 with the scheduler {name} would start below sigma 0.05, from a picture "
                "and not from noise; take 2 steps or more, or a scheduler that can do it in one: "
                f"{', '.join(s for s in SCHEDULERS if s not in NEED_TWO_STEPS)}."
            )

    def _check_init(self) -> None:
        about = [name for name in ABOUT_IT if getattr(self, name) is not None]
        if self.init_image is None and about:
            raise UsageError(
                f"{about[0]} is about a picture to begin with, and there is none; give init_image, "
                f"or leave {about[0]} out."
            )
        if self.fit is not None and self.fit not in FITS:
            raise UsageError(f"fit={self.fit!r} is not known; the known are {', '.join(FITS)}.")
        if self.outpaint is None:
            return
        left, top, right, bottom = self.outpaint
        for name, grown in (("width", left + right), ("height", top + bottom)):
            side = getattr(self, name)
            if side is not None and side < grown + 8:
                raise UsageError(
                    f"{name}={side} is the finished picture's, and {grown} of it are new by "
                    f"outpaint; take {grown + 8} or more."
                )

    @property
    def is_variation(self) -> bool:
        """Whether all images have one seed, and a variation seed of their own."""
        return self.variation_strength is not None or self.variation_seed is not None

    def resolved(self, defaults: Mapping[str, Any]) -> "ResolvedSettings":
        """Fills every None: from `defaults`, a model's own values, else from `FALLBACKS`.

        `defaults` has to hold width and height. Only lms keeps an lms_order; seed None is drawn.

        Raises:
            UsageError: the values that met do not go together.
        """
        known = {**FALLBACKS, **defaults}
        own = {name: getattr(self, name) for name in MODEL_DEFAULTS}
        filled = {name: known[name] if value is None else value for name, value in own.items()}
        if filled["scheduler"] != "lms":
            filled["lms_order"] = self.lms_order
        if self.init_image is not None:
            whole = self.mask_image is None and self.outpaint is None
            strength = STRENGTH if whole else STRENGTH_OF_A_PART
            filled["strength"] = strength if self.strength is None else self.strength
            filled["fit"] = self.fit or "crop"
        if self.hires_scale is not None and self.hires_strength is None:
            filled["hires_strength"] = HIRES_STRENGTH
        if self.seed is None:
            filled["seed"] = secrets.randbelow(2**32)
        if self.is_variation:
            if self.variation_strength is None:
                filled["variation_strength"] = VARIATION
            if self.variation_seed is None:
                seed = filled.get("seed", self.seed or 0) + 1
                filled["variation_seed"] = seed if seed + self.n - 1 <= MAX_SEED else 0
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        return ResolvedSettings(**{**values, **filled})

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
            raise UsageError(f"settings are an object of names and values, not {values!r}.")
        known = [*(f.name for f in dataclasses.fields(cls)), "dim"]
        if unknown := sorted(str(key) for key in values if key not in known):
            raise UsageError(f"unknown setting {unknown[0]!r}; the known are {', '.join(known)}.")
        if "prompt" not in values:
            raise UsageError("settings without a prompt: say what the picture shows.")
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
            raise UsageError(f"settings are not readable as JSON: {error}.") from error
        return cls.from_dict(values)


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings(Settings):
    """Settings with every value there that a run needs, as `Settings.resolved` makes them.

    Only what a run can do without is None: lms_order with another scheduler than lms, what belongs
    to a variation, a second pass or an initial image that was not asked for.
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
        return self.steps if strength is None else steps_taken(self.steps, strength)

    def per_image(self) -> list["ResolvedSettings"]:
        """The settings of every image of the run, each with n 1.

        Image i has seed + i; of variations all have the seed, and image i variation_seed + i.
        """
        if (first := self.variation_seed) is not None:
            return [dataclasses.replace(self, variation_seed=first + i, n=1) for i in range(self.n)]
        return [dataclasses.replace(self, seed=self.seed + i, n=1) for i in range(self.n)]
