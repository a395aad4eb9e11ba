"""Which part of the jobs a process draws, where several share them without knowing each other."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from sdpipe.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 0, of `count`: every count-th job.

    Raises:
        UsageError: there is no such part.
    """

    index: int = 0
    count: int = 1
    origin: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"shard {self.index}/{self.count}{self.origin}",
                "is no part",
                f"parts count from 0: 0/{max(self.count, 1)} is the first",
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads INDEX/COUNT. Raises UsageError on anything else."""
        if (match := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)) is None:
            raise UsageError(f"shard={text!r}", "is not INDEX/COUNT", "as in 0/8, the first of 8")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def from_environment(cls, names: Mapping[str, str]) -> Self:
        """The part of a process of torchrun or accelerate, or of a SLURM array; else all.

        names: the environment: RANK and WORLD_SIZE, or SLURM_ARRAY_TASK_ID, _MIN, _MAX, _COUNT,
            _STEP.

        Raises:
            UsageError: one of them is no number, or the ids of the array have gaps.
        """

        def number(name: str, default: int) -> int:
            try:
                return int(names.get(name, default))
            except ValueError:
                raise UsageError(f"{name}={names[name]!r}", "is not a whole number") from None

        if "RANK" in names and "WORLD_SIZE" in names:
            return cls(number("RANK", 0), number("WORLD_SIZE", 1), " (RANK/WORLD_SIZE)")
        array = "SLURM_ARRAY_TASK"
        if f"{array}_ID" in names:
            first = number(f"{array}_MIN", 0)
            step = max(number(f"{array}_STEP", 1), 1)
            own, count = number(f"{array}_ID", 0), number(f"{array}_COUNT", 1)
            last = number(f"{array}_MAX", first + (count - 1) * step)
            index, ragged = divmod(own - first, step)
            if ragged or (last - first) // step != count - 1:
                raise UsageError(
                    f"{array}_ID={own}",
                    f"is of an array with gaps: it has {count} tasks from {first} to {last}",
                    f"say which part this one draws, as in --shard ${array}_ID/{last + 1} where "
                    f"the whole array was 0-{last}",
                )
            return cls(index, count)
        return cls()
