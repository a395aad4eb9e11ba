"""Bounds on image files, which may come from anybody, before they are opened."""

import mmap
import os
import re
import stat
from typing import IO, Literal

from sdpipe.errors import SdpipeError

MAX_FILE = 2**28  # bytes of a file that is opened
MAX_CHUNKS = 2**16  # of a PNG
MAX_NOTES = 2**24  # bytes of a PNG that are no pixels, of a TIFF's tag, of an ICO
NOTES_RULE = f"more than {MAX_NOTES} bytes of notes"
NOTES_REMEDY = "save it again without them"
# Formats whose decoders make copies of the pixels and of the file.
COPIED, MAX_COPIED, MAX_COPIED_FILE = ("WEBP", "JPEG2000", "AVIF"), 32_000_000, 2**27
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
    """Refuses a file of so many or so long segments that Pillow takes minutes, or gigabytes."""
    chunks = segments = scans = notes = 0
    with open(path, "rb") as file:
        start = file.read(8)
        if start == b"\x89PNG\r\n\x1a\n":
            while len(head := file.read(8)) == 8 and chunks <= MAX_CHUNKS:
                chunks += 1
                length = int.from_bytes(head[:4], "big")
                notes += 0 if head[4:] in (b"IDAT", b"fdAT") else length
                file.seek(length + 4, os.SEEK_CUR)
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
        elif start[:4] in _TIFF:
            segments, notes = _measure_tags(file, *_TIFF[start[:4]])
        elif start[:4] == b"\0\0\1\0":  # ICO, which may hold a PNG
            notes = os.fstat(file.fileno()).st_size
    if scans > MAX_SCANS:
        rule = f"cannot be read: it has more than {MAX_SCANS} scans"
        raise SdpipeError(f"{path}", rule, "save it again")
    if chunks > MAX_CHUNKS or segments > MAX_SEGMENTS:
        most = f"{MAX_CHUNKS} chunks" if chunks else f"{MAX_SEGMENTS} segments before its pixels"
        raise SdpipeError(f"{path}", f"cannot be read: it has more than {most}", "save it again")
    if notes > MAX_NOTES:
        raise SdpipeError(f"{path}", f"cannot be read: it has {NOTES_RULE}", NOTES_REMEDY)


Order = Literal["little", "big"]
_TIFF: dict[bytes, tuple[Order, bool]] = {
    b"II*\0": ("little", False), b"MM\0*": ("big", False),
    b"II+\0": ("little", True), b"MM\0+": ("big", True),
}  # fmt: skip
_DIRECTORIES = (34665, 34853, 40965)  # the tags that hold the place of more tags, as of EXIF


def _measure_tags(file: IO[bytes], order: Order, is_big: bool) -> tuple[int, int]:
    """The tags of a TIFF's first image, and the bytes of the longest value of a tag."""
    size = 8 if is_big else 4  # of a count and of an offset
    file.seek(size)
    places, number, longest = [int.from_bytes(file.read(size), order)], 0, 0
    while places and number <= MAX_SEGMENTS:
        file.seek(min(places.pop(), MAX_FILE))
        here = int.from_bytes(file.read(8 if is_big else 2), order)
        number += here
        for _ in range(min(here, MAX_SEGMENTS)):
            tag, kind, count, value = (
                int.from_bytes(file.read(n), order) for n in (2, 2, size, size)
            )
            longest = max(longest, count * {1: 1, 2: 1, 6: 1, 7: 1, 3: 2, 8: 2}.get(kind, 8))
            places += [value] if tag in _DIRECTORIES else []
    return number, longest


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
