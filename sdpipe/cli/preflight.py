"""Checks of a run before torch is imported, so that a refusal takes no time.

For a single step torch is needed: the scheduler that was made is asked where it begins.

Only against a model on this machine; one that has to be fetched is checked when it is loaded.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdpipe.components import inspect_model
from sdpipe.loading.compatibility import check_checker
from sdpipe.plan import plan
from sdpipe.sweep.sweep import Sweep

Run = tuple[str | Sequence[str], Mapping[str, Any]]
"""The prompt, or the prompts, and the settings of one call of `Pipeline.generate`."""


def check_early(weights: Mapping[str, Any], dtype: str, runs: Iterable[Run]) -> None:
    """Checks runs against the model that `weights` name, see `groups.ModelOptions`.

    Raises:
        UsageError, ModelError: as `Pipeline` and `Pipeline.generate`.
    """
    sources = inspect_model(**weights, dtype=dtype)
    if sources is None:
        return
    rules = sources.constraints
    for prompts, settings in runs:
        if settings["safety"] != "off":
            check_checker(sources)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself says them
            image = plan(prompts, **rules, **settings)[0]
            if image.steps == 1 or image.zero_snr:  # only the scheduler itself knows; needs torch
                from sdpipe.schedule import schedule_for

                schedule_for(image, sources.scheduler(), "cpu")


def cells(sweep: Sweep) -> Iterable[Run]:
    """What a sweep draws, cell by cell."""
    images: dict[str, Any] = {
        name: sweep.values[name] for name in ("init_image", "mask_image") if name in sweep.values
    }
    for cell in sweep.cells:
        settings = {**cell.settings.to_dict(), **images}
        yield settings.pop("prompt"), settings
