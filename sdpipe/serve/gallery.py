"""The last images that were drawn, under names that nobody guesses."""

import secrets
from collections import OrderedDict

MOST = 64


class Gallery:
    """Keeps the last `most` images as the bytes of files; older ones are forgotten."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._files: OrderedDict[str, tuple[bytes, str]] = OrderedDict()

    def add(self, data: bytes, media_type: str) -> str:
        """Keeps an image, and returns the last part of its address."""
        name = f"{secrets.token_urlsafe(24)}.{media_type.rpartition('/')[2]}"
        self._files[name] = (data, media_type)
        while len(self._files) > self._most:
            self._files.popitem(last=False)
        return name

    def get(self, name: str) -> tuple[bytes, str] | None:
        """An image's bytes and media type; None for one that is not, or no more, there."""
        return self._files.get(name)
