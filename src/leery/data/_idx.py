"""The IDX file format of MNIST: a magic number, the dimensions, then raw bytes."""

import math
import struct

import numpy as np

from leery.errors import CorruptDataError

_UINT8 = 0x08


def parse_idx(data: bytes, name: str, *, ndim: int) -> np.ndarray:
    """Parse one uncompressed IDX file of unsigned bytes.

    Args:
        data: the whole file.
        name: file name for error messages.
        ndim: required number of dimensions: 3 for images, 1 for labels.

    Returns:
        uint8, of the shape that the header states, read-only.

    Raises:
        CorruptDataError: when the header is truncated, is not that of an IDX file of unsigned
            bytes, states another number of dimensions, or does not fit the file's length.

    Source:
        LeCun, Cortes, Burges, "The MNIST database of handwritten digits", file formats.
    """
    header = 4 + 4 * ndim
    if len(data) < header:
        _refuse(name, f"at least {header} bytes of header", f"{len(data)} bytes")
    zeros, kind, found_ndim = struct.unpack(">HBB", data[:4])
    if zeros != 0 or kind != _UINT8:
        _refuse(name, "an IDX file of unsigned bytes (magic 0x000008..)", f"0x{data[:4].hex()}")
    if found_ndim != ndim:
        _refuse(name, f"{ndim} dimension(s)", f"{found_ndim}")
    shape = struct.unpack(f">{ndim}I", data[4:header])
    expected = header + math.prod(shape)
    if len(data) != expected:
        state = "truncated" if len(data) < expected else "oversized"
        _refuse(name, f"{expected} bytes for shape {shape}", f"{len(data)} bytes ({state})")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _refuse(name: str, expected: str, got: str) -> None:
    message = f"{name}: expected {expected}, got {got}; replace the file"
    raise CorruptDataError(message)
