"""From rows to jobs: every row checked and told, equal ones made one, in some 70 bytes a job.

Nothing of a row is kept but where it begins; `Plan.job` reads it again when it is drawn.
"""

import warnings
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sdpipe.batch.identity import check_id, common_text, job_digest, name_key, seed_of
from sdpipe.batch.rows import RowError, Rows
from sdpipe.canvas import LoadedImage, load_images
from sdpipe.errors import SdpipeError, UsageError
from sdpipe.plan import check_seamless, plan
from sdpipe.settings import MAX_SEED, RULES, ResolvedSettings
from sdpipe.values import check_int

if TYPE_CHECKING:
    from sdpipe.components import Components

SIZES = {"dim", "width", "height"}
MAX_TOLD = 20  # bad rows that an error names
TEMPLATES = 1024  # combinations of settings that are kept


@dataclass(frozen=True)
class Model:
    """What planning asks of a model.

    constraints: see `Components.constraints`.
    identity: see `ModelInfo.identity`.
    levels: of its U-Net, see `check_seamless`.
    """

    constraints: Mapping[str, Any]
    identity: Mapping[str, Any]
    levels: int = 1

    @classmethod
    def of(cls, parts: "Components") -> Self:
        """That of a loaded model."""
        levels = len(parts.unet.config.block_out_channels)
        return cls(parts.constraints, parts.model.identity(), levels)


@dataclass(frozen=True)
class Template:
    """What jobs have in common that differ in nothing but prompts and seeds.

    common: all of it, see `common_text`; group: a number for it.
    """

    settings: ResolvedSettings
    common: bytes
    group: int
    init: LoadedImage | None
    mask: LoadedImage | None


class Job(NamedTuple):
    """One image.

    own: its values of `identity.OWN`.
    name: of its file, without the suffix.
    """

    template: Template
    own: Mapping[str, Any]
    name: str
    digest: bytes

    @property
    def settings(self) -> ResolvedSettings:
        """What it is drawn with."""
        return replace(self.template.settings, dim=None, **self.own)


class Plan:
    """The jobs of some rows, by numbers from 0 in the order of the rows.

    defaults: settings that count where a row says nothing.
    base_seed: from which rows without a seed get theirs; see `BatchFolder.base_seed`.
    most: rows that are read, at most; None is all.
    bad: the number of each row that cannot be drawn, and why.
    keys, digests: of every job, see `name_key` and `job_digest`; (jobs, 16) and (jobs, 32) bytes.

    Raises:
        UsageError: there is no row.
    """

    def __init__(
        self,
        rows: Rows,
        model: Model,
        defaults: Mapping[str, Any],
        base_seed: int,
        most: int | None = None,
    ) -> None:
        self.rows, self._model, self._base_seed = rows, model, base_seed
        self._defaults = {k: v for k, v in defaults.items() if v is not None}
        self._templates: dict[str, Template] = {}
        self.bad: list[tuple[int, SdpipeError]] = []
        self._read_all(most)
        self._merge_equal()

    def __len__(self) -> int:
        return len(self._rows)

    def job(self, i: int) -> Job:
        """Job i, from its row.

        Raises:
            SdpipeError: the row is no longer the one that was planned.
        """
        number = int(self._rows[i])
        try:
            row = self.rows.read(int(self._places[i]))
            job = self._jobs(row, number, int(self._images[i]))[0]
        except SdpipeError:
            job = None
        if job is None or job.digest != self.digests[i].tobytes():
            raise SdpipeError(
                f"{self.rows.unit} {number} of {self.rows.name}",
                "has changed since the jobs were planned",
                "start again; what is drawn stays",
            )
        return job

    def row(self, i: int) -> int:
        """The number of the row of job i."""
        return int(self._rows[i])

    def find(self, keys: bytes) -> NDArray[np.int64]:
        """The jobs of some names, from the `name_key`s one after the other; -1 is none."""
        wanted = np.frombuffer(keys, "S16")
        if not len(self) or not len(wanted):
            return np.full(len(wanted), -1)
        at = np.searchsorted(self._sorted_keys, wanted).clip(max=len(self) - 1)
        return np.where(self._sorted_keys[at] == wanted, self._order[at], -1)

    def groups(self, numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """The jobs that are alike in all but prompts and seeds, the first group first."""
        of = self._groups[numbers]
        order = np.argsort(of, kind="stable")
        cuts = np.flatnonzero(np.diff(of[order])) + 1
        parts = np.split(numbers[order], cuts) if len(numbers) else []
        yield from sorted(parts, key=lambda part: int(part[0]))

    def _read_all(self, most: int | None) -> None:
        places, rows, images, groups = array("Q"), array("Q"), array("Q"), array("Q")
        keys, digests = bytearray(), bytearray()
        count = 0
        for count, (number, place, line) in enumerate(self.rows.lines(), 1):
            if most is not None and count > most:
                break
            try:
                jobs = self._jobs(self.rows.parse(line), number)
            except SdpipeError as error:
                self.bad.append((number, error))
                continue
            for image, job in enumerate(jobs):
                places.append(place)
                rows.append(number)
                images.append(image)
                groups.append(job.template.group)
                keys += name_key(job.name)
                digests += job.digest
        if not count:
            raise UsageError(self.rows.name, "has no job", "give a row for each")
        self._places, self._rows, self._images, self._groups = (
            np.frombuffer(values, np.uint64) for values in (places, rows, images, groups)
        )
        self.keys = np.frombuffer(keys, np.uint8).reshape(-1, 16)
        self.digests = np.frombuffer(digests, np.uint8).reshape(-1, 32)

    def _merge_equal(self) -> None:
        """Makes equal jobs one, and refuses others of one name; then sorts the names."""
        names = self.keys.view("S16").ravel()
        order = np.argsort(names, kind="stable")
        twice = np.flatnonzero(names[order[1:]] == names[order[:-1]]) + 1
        if len(twice):
            keep = np.ones(len(self), bool)
            first = -1
            for at in twice:
                if first < 0 or names[order[at]] != names[first]:
                    first = order[at - 1]
                later = order[at]
                keep[later] = False
                if (self.digests[first] != self.digests[later]).any() or not self._is_one_name(
                    int(first), int(later)
                ):
                    self.bad.append((self.row(later), self._same_name(int(first), int(later))))
            self.bad.sort(key=lambda pair: pair[0])
            for name in ("_places", "_rows", "_images", "_groups", "keys", "digests"):
                setattr(self, name, getattr(self, name)[keep])
            names = self.keys.view("S16").ravel()
            order = np.argsort(names, kind="stable")
        self._order, self._sorted_keys = order, names[order]

    def _is_one_name(self, a: int, b: int) -> bool:
        if self.keys[a].tobytes() == self.digests[a].tobytes()[:16]:
            return True
        return self.job(a).name == self.job(b).name

    def _same_name(self, a: int, b: int) -> UsageError:
        return UsageError(
            f"id={self.job(b).name!r}",
            f"is that of {self.rows.unit} {self.row(a)}, which has other settings"
            if self.job(a).name == self.job(b).name
            else f"is the same file's name as {self.job(a).name!r} on some systems",
            "give every job an id of its own, or leave id out",
        )

    def _jobs(self, row: Mapping[str, Any], number: int, image: int | None = None) -> list[Job]:
        """The jobs of a row, or one of them.

        Raises:
            UsageError: a value breaks a rule.
        """
        values = {**self._defaults, **{k: v for k, v in row.items() if v is not None}}
        if not SIZES.isdisjoint(row):
            values = {k: v for k, v in values.items() if k not in SIZES or k in row}
        if "prompt" not in values:
            raise RowError("it", "has no prompt", "say what the image shows")
        prompt = self._read_prompt("prompt", values.pop("prompt"))
        negative = values.pop("negative_prompt", "")
        negative = negative and self._read_prompt("negative_prompt", negative)
        n = values.pop("n", 1)
        n = n if n == 1 and type(n) is int else RULES["n"].check("n", n)
        name = values.pop("id", None)
        seed = values.pop("seed", None)
        is_variation = "variation_seed" in values or "variation_strength" in values
        if seed is None:
            seed = seed_of(self._base_seed, number)
        last = MAX_SEED - (0 if is_variation else n - 1)
        if type(seed) is not int or not 0 <= seed <= last:
            check_int("seed", seed, 0, last)
        template = self._template(values, seed if is_variation else 0)
        name = None if name is None else check_id(name)
        jobs = []
        for k in range(n) if image is None else (image,):
            own = {"prompt": prompt, "negative_prompt": negative, "seed": seed + k}
            if (first := template.settings.variation_seed) is not None:
                own |= {"seed": seed, "variation_seed": first + k}
            digest = job_digest(template.common, own)
            named = digest.hex() if name is None else f"{name}-{k + 1}" if n > 1 else name
            jobs.append(Job(template, own, named, digest))
        return jobs

    def _read_prompt(self, name: str, value: object) -> str:
        """A prompt as the model is told it."""
        text: str = RULES[name].check(name, value)
        if text.isascii():
            return text
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of which of a million is read as which
            return str(self._model.constraints["read_prompt"](text))

    def _template(self, values: dict[str, Any], seed: int) -> Template:
        """What jobs of these values have in common; `seed` counts in variations alone."""
        key = f"{seed} {values}"  # tells 1 from 1.0 and True, of which not all keep a rule
        if (template := self._templates.get(key)) is None:
            if len(self._templates) >= TEMPLATES:
                self._templates.clear()
            template = self._templates[key] = self._make_template(values, seed)
        return template

    def _make_template(self, values: dict[str, Any], seed: int) -> Template:
        for name in ("init_image", "mask_image"):
            if isinstance(values.get(name), str):
                values[name] = self.rows.folder / values[name]
        init, mask = load_images(values.pop("init_image", None), values.pop("mask_image", None))
        rules = {**self._model.constraints, "read_prompt": str}
        (settings,) = plan("x", **rules, init_image=init, mask_image=mask, seed=seed, **values)
        check_seamless(settings, rules["factor"], self._model.levels)
        common = common_text(self._model.identity, settings.to_dict())
        group = int.from_bytes(sha256(common).digest()[:8])
        return Template(settings, common, group, init, mask)


def check_rows(plan: Plan) -> None:
    """Refuses rows that cannot be drawn. Raises UsageError, with the first of them."""
    if not plan.bad:
        return
    told = [f"{plan.rows.unit} {number}: {error}" for number, error in plan.bad[:MAX_TOLD]]
    more = len(plan.bad) - len(told)
    told += [f"and {more} more"] if more else []
    raise UsageError(
        plan.rows.name,
        f"has rows that cannot be drawn ({' '.join(told)})",
        "correct what is wrong, or draw the others with keep_going=True",
    )
