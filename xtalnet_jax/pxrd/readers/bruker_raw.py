"""Bruker binary .raw: only version RAW1.01, and only where the file accounts for every byte.

Layout (little endian): a header of 712 bytes with the number of ranges at 12 and float64 K-alpha
wavelengths at 624 and 632 and their ratio at 648; then per range a header that starts with its own
length (int32) and the number of points (int32), 2-theta at 16 and step at 176 (float64), the length
of a supplement at 256 (int32); supplement; float32 intensities. Older and newer versions differ.
"""

from __future__ import annotations

import struct

import numpy as np

from xtalnet_jax.pxrd.readers.base import Scan, grid
from xtalnet_jax.pxrd.readers.radiation import doublet

_FILE_HEADER = 712
_RANGE_HEADER = 304


def read(data: bytes) -> Scan:
    """Read a file with one range.

    Raises:
        ValueError: another version, several ranges, or a layout that does not add up.
    """
    if data[:7] != b"RAW1.01":
        version = data[:7].decode("latin-1").strip()
        raise ValueError(
            f"Bruker {version!r} binary files are not supported; export the scan as .xy or .brml "
            "(DIFFRAC.EVA or FileExchange)"
        )
    odd = ValueError("this RAW1.01 file is damaged or of an unknown layout; export the scan as .xy")
    if len(data) < _FILE_HEADER + _RANGE_HEADER:
        raise odd
    (num_ranges,) = struct.unpack_from("<i", data, 12)
    if num_ranges != 1:
        raise ValueError(
            f"{num_ranges} ranges in the .raw file, expected one; export the scan as .xy"
        )
    length, num = struct.unpack_from("<ii", data, _FILE_HEADER)
    (supplement,) = struct.unpack_from("<i", data, _FILE_HEADER + 256)
    begin = _FILE_HEADER + length + supplement
    if length != _RANGE_HEADER or supplement < 0 or num < 1 or begin + 4 * num != len(data):
        raise odd
    (start,) = struct.unpack_from("<d", data, _FILE_HEADER + 16)
    (step,) = struct.unpack_from("<d", data, _FILE_HEADER + 176)
    alpha1, alpha2, _, ratio = struct.unpack_from("<4d", data, 624)
    if not (0.2 < alpha1 < 3 and -180 <= start <= 180 and 0 < step < 10):
        raise odd
    intensity = np.frombuffer(data, "<f4", num, begin).astype(float)
    return Scan(grid(start, step, num), intensity, **doublet(alpha1, alpha2, ratio))
