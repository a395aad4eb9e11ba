"""ICC profiles written by hand, and what they mean in closed form.

Version 2 of the format, with a matrix and a gamma (RGB), a gamma alone (grey), or a table with
two points a side (CMYK); colours go to XYZ under D50.
"""

import struct

import numpy as np

# From linear sRGB to XYZ under D50, Bradford-adapted: the columns of every sRGB profile.
SRGB_D50 = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
# The same of Adobe RGB (1998).
ADOBE_D50 = np.array(
    [
        [0.6097559, 0.2052401, 0.1492240],
        [0.3111242, 0.6256560, 0.0632197],
        [0.0194811, 0.0608902, 0.7448387],
    ]
)
ADOBE_GAMMA = 563 / 256
D50 = (0.9642, 1.0, 0.8249)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(
    space: bytes, kind: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ "
) -> bytes:
    text = b"test\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz(*D50),
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, kind, space, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += _fixed(*D50)
    return header.ljust(128, b"\0") + table + body


def _matrix(columns: np.ndarray, curve: bytes) -> bytes:
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    tags = {name: _xyz(*columns[:, i]) for i, name in enumerate(names)}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _profile(b"RGB ", b"mntr", {**tags, **curves})


def adobe_rgb() -> bytes:
    """Adobe RGB (1998)."""
    return _matrix(ADOBE_D50, _gamma(ADOBE_GAMMA))


def srgb(round_to: float = 2**-16) -> bytes:
    """sRGB with a curve of 1024 points, as HP's profile has it; other programs round otherwise."""
    x = np.linspace(0, 1, 1024)
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    curve = b"curv\0\0\0\0" + struct.pack(">I", len(x))
    curve += np.round(linear * 65535).astype(">u2").tobytes()
    return _matrix(np.round(SRGB_D50 / round_to) * round_to, curve)


def grey(gamma: float) -> bytes:
    """Grey with a gamma."""
    return _profile(b"GRAY", b"mntr", {b"kTRC": _gamma(gamma)})


def cmyk(paper: tuple[int, int, int], inks: tuple[int, int, int]) -> bytes:
    """CMYK: paper where there is no ink at all, and the colour `inks` wherever there is any.

    Both are Lab as a table of 8 bits has it: L of 0 to 100 as 0 to 255, a and b plus 128.
    """
    ramp = bytes(range(256))
    points = bytes(paper) + bytes(inks) * 15
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += ramp * 4 + points + ramp * 3
    return _profile(b"CMYK", b"prtr", dict.fromkeys((b"A2B0", b"A2B1"), table), b"Lab ")


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear sRGB as 8-bit values, by the formula of IEC 61966-2-1."""
    linear = linear.clip(0, 1)
    low, high = 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, low, high) * 255


def adobe_to_srgb(values: np.ndarray) -> np.ndarray:
    """8-bit Adobe RGB (..., 3) as sRGB; colours outside of sRGB are cut off."""
    linear = (values / 255) ** ADOBE_GAMMA
    return encode_srgb(linear @ ADOBE_D50.T @ np.linalg.inv(SRGB_D50).T)
