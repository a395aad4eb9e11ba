"""Claims: which names in a folder a process works on, so that others leave them alone.

A claim is a locked file beside the name. The system releases the lock when its process ends,
however it ends, so that no claim outlives its owner.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def claim(folder: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """Claims those of the names that no other process has claimed, until the block ends.

    Whoever has claimed a name looks again whether its file is there before making it: another
    process may have made it and let the claim go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        claimed = []
        for name in names:
            digest = hashlib.sha256(name.encode()).hexdigest()[:16]
            path = folder / f".sdpipe-{digest}.claim"
            try:
                stack.enter_context(FileLock(path, blocking=False))
            except Timeout:
                continue
            stack.callback(path.unlink, missing_ok=True)
            claimed.append(name)
        yield claimed
