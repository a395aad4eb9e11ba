"""Progress bars of downloads: one for all weights, in place of one for each file."""

from typing import Any


def weights_bar(repo: str, total: int) -> Any:
    """One progress bar for all weights, on stderr; none if that is not a terminal."""
    from huggingface_hub.utils.tqdm import tqdm

    unit = {"unit": "B", "unit_scale": True}
    return tqdm(total=total, desc=f"Fetching {repo}", disable=None if total else True, **unit)


def silent_bar() -> type[Any]:
    """The class of a progress bar that shows nothing."""
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


def forward_to(bar: Any) -> type[Any]:
    """The class of a file's progress bar that hf_hub_download makes; its updates go to `bar`."""

    class Forward:
        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            bar.update(initial)

        def __enter__(self) -> "Forward":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            bar.update(n)

        def ignore(self, *_: object, **__: object) -> None:
            """The rate of one file, and its bytes before they are unpacked, are not shown."""

        close = update_transfer = set_postfix_str = set_transfer_postfix_str = ignore

    return Forward
