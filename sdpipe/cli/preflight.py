"""What is told of a run before torch is imported: a refusal costs no waiting.

Only of a model that is here; one that has to be fetched is looked at when it is.
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
    """Holds runs against the model that `weights` name, see `groups.Weights`.

    Raises:
        UsageError, ModelError: as `Pipeline` and `Pipeline.generate`.
    """
    sources = inspect_model(**weights, dtype=dtype)
    if sources is None:
        return
    defaults, factor, layers = sources.defaults(), sources.factor, sources.layers
    for prompts, settings in runs:
        if settings["safety"] != "off":
            check_checker(sources)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself says them
            plan(prompts, defaults=defaults, factor=factor, layers=layers, **settings)


def cells(sweep: Sweep) -> Iterable[Run]:
    """What a sweep draws, cell by cell."""
    pictures: dict[str, Any] = {
        name: sweep.values[name] for name in ("init_image", "mask_image") if name in sweep.values
    }
    for cell in sweep.cells:
        settings = {**cell.settings.to_dict(), **pictures}
        yield settings.pop("prompt"), settings
