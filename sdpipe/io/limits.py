"""Bounds on image files, which may come from anybody, before they are opened."""

import mmap
import os
import re
import stat
from typing import IO, Literal

from sdpipe.errors import SdpipeError

MAX_FILE = 2**28  # bytes of a file that is opened
MAX_CHUNKS = 2**16  # of a PNG
COPIED, MAX_COPIED = ("WEBP", "JPEG2000"), 36_000_000  # pixels, as their decoders make copies
MAX_SCANS = 32  # of a progressive JPEG, each of which takes as long as the image
MAX_BLOCKS = 2**19  # of a GIF before its second image, up to 255 bytes each
MAX_SEGMENTS = 256  # of a JPEG before its pixels, of a GIF; tags of a TIFF
_MARK = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # in pixels FF is followed by 00, D0 to D7


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
    chunks = segments = scans = 0
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
                    scans = _count_scans(file, file.tell() - 4)
                    break
                segments += 1
                is_marker = head[0] == 0xFF and head[1] not in (0, 0xFF)  # of others one is skipped
                file.seek(int.from_bytes(head[2:], "big") - 2 if is_marker else -3, os.SEEK_CUR)
        elif start[:4] == b"GIF8":
            segments = _count_extensions(file)
        elif start[:4] in (b"II*\0", b"MM\0*"):
            order: Literal["little", "big"] = "little" if start[:1] == b"I" else "big"
            file.seek(int.from_bytes(start[4:8], order))
            segments = int.from_bytes(file.read(2), order)  # its tags
    if scans > MAX_SCANS:
        rule = f"cannot be read: it has more than {MAX_SCANS} scans"
        raise SdpipeError(f"{path}", rule, "save it again")
    if chunks > MAX_CHUNKS or segments > MAX_SEGMENTS:
        most = f"{MAX_CHUNKS} chunks" if chunks else f"{MAX_SEGMENTS} segments before its pixels"
        raise SdpipeError(f"{path}", f"cannot be read: it has more than {most}", "save it again")


def _count_scans(file: IO[bytes], at: int) -> int:
    """The scans of a JPEG from a place on, at most one more than are allowed."""
    scans = marks = 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while scans <= MAX_SCANS and (mark := _MARK.search(data, at)) and mark[1] != b"\xd9":
            scans += mark[1] == b"\xda"
            at = mark.end() + int.from_bytes(data[mark.end() : mark.end() + 2], "big")
            if (marks := marks + 1) > 4 * MAX_SEGMENTS:
                return MAX_SCANS + 1
    return scans


def _count_extensions(file: IO[bytes]) -> int:
    """The extensions of a GIF before its second image, at most one more than are allowed.

    More than `MAX_BLOCKS` blocks count as too many extensions.
    """
    file.seek(10)
    flags = int.from_bytes(file.read(1), "little")
    file.seek(2 + (6 << (flags & 7) if flags & 128 else 0), os.SEEK_CUR)
    extensions = images = blocks = 0
    while extensions <= MAX_SEGMENTS and images < 2 and (kind := file.read(1)):
        if kind == b"!":
            extensions += 1
            file.seek(1, os.SEEK_CUR)
        elif kind == b",":
            images += 1
            flags = int.from_bytes(file.read(9)[8:], "little")
            file.seek(1 + (6 << (flags & 7) if flags & 128 else 0), os.SEEK_CUR)
        else:
            continue
        while size := int.from_bytes(file.read(1), "little"):
            file.seek(size, os.SEEK_CUR)
            if (blocks := blocks + 1) > MAX_BLOCKS:
                return MAX_SEGMENTS + 1
    return extensions
