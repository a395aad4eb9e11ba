"""Bounds on image files, which may come from anybody, before they are opened."""

import os
import stat

from sdpipe.errors import SdpipeError

MAX_FILE = 2**28  # bytes of a file that is opened
MAX_CHUNKS = 2**16  # of a PNG
MAX_SEGMENTS = 256  # of a JPEG before its pixels, 64 kB each


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuses files that would block a reader, or fill the memory."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise SdpipeError(f"{path}", "cannot be read: it is a device or a pipe, not a file")
    if status.st_size > MAX_FILE:
        raise SdpipeError(
            f"{path}", f"cannot be read: it has {status.st_size} bytes, more than {MAX_FILE}"
        )


def check_segments(path: str | os.PathLike[str]) -> None:
    """Refuses a PNG or JPEG of so many segments that Pillow takes minutes to read them."""
    chunks = segments = 0
    with open(path, "rb") as file:
        start = file.read(8)
        if start == b"\x89PNG\r\n\x1a\n":
            while len(head := file.read(8)) == 8 and chunks <= MAX_CHUNKS:
                chunks += 1
                file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        elif start[:2] == b"\xff\xd8":
            file.seek(2)
            while len(head := file.read(4)) == 4 and segments <= MAX_SEGMENTS:
                if head[:2] == b"\xff\xda":  # the pixels follow
                    break
                segments += 1
                is_marker = head[0] == 0xFF and head[1] not in (0, 0xFF)  # of others one is skipped
                file.seek(int.from_bytes(head[2:], "big") - 2 if is_marker else -3, os.SEEK_CUR)
    if chunks > MAX_CHUNKS or segments > MAX_SEGMENTS:
        most = f"{MAX_CHUNKS} chunks" if chunks else f"{MAX_SEGMENTS} segments before its pixels"
        raise SdpipeError(f"{path}", f"cannot be read: it has more than {most}", "save it again")
