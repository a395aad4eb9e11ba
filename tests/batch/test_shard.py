"""Which part of the jobs a process draws."""

import pytest
from support.errors import raises

from sdpipe.batch.shard import Shard
from sdpipe.errors import UsageError

ENVIRONMENTS = [
    ({}, (0, 1)),
    ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8)),
    (
        {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"},
        (2, 4),
    ),
    # --array=0-14:2, as the documentation of sbatch has it
    (
        {
            "SLURM_ARRAY_TASK_ID": "14",
            "SLURM_ARRAY_TASK_MIN": "0",
            "SLURM_ARRAY_TASK_COUNT": "8",
            "SLURM_ARRAY_TASK_STEP": "2",
        },
        (7, 8),
    ),
]


@pytest.mark.parametrize(("names", "expected"), ENVIRONMENTS)
def test_the_environment_says_which(names, expected):
    shard = Shard.from_environment(names)
    assert (shard.index, shard.count) == expected


@pytest.mark.parametrize("text", ["8/8", "3", "-1/4", "a/b", "1/0", ""])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(UsageError, match=r"is no part|is not INDEX/COUNT"):
        Shard.parse(text)
    gaps = {"ID": "7", "MIN": "3", "MAX": "7", "COUNT": "2", "STEP": "1"}
    with raises(UsageError, rule="gaps", remedy="--shard $SLURM_ARRAY_TASK_ID/8"):
        Shard.from_environment({f"SLURM_ARRAY_TASK_{name}": text for name, text in gaps.items()})
    with raises(UsageError, value="RANK='x'", rule="whole number"):
        Shard.from_environment({"RANK": "x", "WORLD_SIZE": "2"})
