"""Row-by-row reading of npy and npz files, without pickle and with one row in memory."""

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from leery._files import raise_reading_fault
from leery.errors import InputError, LeeryError, brief, listed
from leery.inputs._format import Format, UnreadableError
from leery.inputs._item import Item, printable

__all__ = ["array_length", "read_array"]

_ROW_BYTES = 2**28
"""Maximum size of one input: 256 MiB."""

_SKIP_BYTES = 2**20

_LAST_LABEL = 2**31

_HEADER_BYTES = 2**16


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        count = self.dtype.itemsize
        for size in self.shape[1:]:
            count *= size
        return count


def array_length(path: Path, form: Format) -> int:
    """The number of rows of an npy or npz file.

    Raises:
        InputError: when the file holds no readable array.
    """
    with _opened(path, form.images_key) as stream:
        return _header(path, stream).shape[0]


def read_array(path: Path, form: Format, start: int) -> Iterator[Item]:
    """The rows of an npy or npz file from ``start`` on, with the labels of an npz.

    Raises:
        InputError: when the file holds no readable array, or is truncated.
    """
    with _opened(path, form.images_key) as stream:
        header = _header(path, stream)
        labels = _labels(path, form, header.shape[0])
        _skip(path, stream, start * header.row_bytes)
        for row in range(start, header.shape[0]):
            values = np.frombuffer(_exactly(path, stream, header.row_bytes), header.dtype)
            yield _item(
                f"{printable(path)}#{row}",
                values.reshape(header.shape[1:]),
                form,
                None if labels is None else int(labels[row]),
            )


def _item(name: str, values: np.ndarray, form: Format, label: int | None) -> Item:
    try:
        return Item(name, form.row(values), label)
    except UnreadableError as error:
        return Item(name, None, label, str(error))


def _labels(path: Path, form: Format, count: int) -> np.ndarray | None:
    if (
        form.labels_key is None
        or path.suffix.lower() == ".npy"
        or f"{form.labels_key}.npy" not in _members(path)
    ):
        return None
    with _opened(path, form.labels_key) as stream:
        header = _header(path, stream)
        if header.shape != (count,) or header.dtype.kind not in "iu":
            message = (
                f"expected {count} integers as {form.labels_key} in {path}, got shape "
                f"{header.shape} of {header.dtype}; correct the file"
            )
            raise InputError(message)
        if count * header.row_bytes > _ROW_BYTES:
            message = (
                f"expected labels of at most {_ROW_BYTES} bytes in {path}, got {count} labels; "
                "split the file"
            )
            raise InputError(message)
        labels = np.frombuffer(_exactly(path, stream, count * header.row_bytes), header.dtype)
        if labels.max() > _LAST_LABEL:
            message = (
                f"expected classes up to {_LAST_LABEL} in {path}, got {labels.max()}; number them "
                "from 0"
            )
            raise InputError(message)
        return labels.astype(np.int64)


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _broken(path, error) from error


@contextmanager
def _opened(path: Path, key: str) -> Iterator[BinaryIO]:
    """The bytes of an npy file, or of the array of that name in an npz file."""
    if path.suffix.lower() == ".npz" and f"{key}.npy" not in _members(path):
        names = listed(name.removesuffix(".npy") for name in _members(path))
        message = (
            f"expected an array {key!r} in {path}, got {names}; rename yours or pass its name "
            "(--images-key)"
        )
        raise InputError(message)
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as stream:
                yield stream
        else:
            with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
                yield member  # type: ignore[misc]  # reads like a file
    except LeeryError:
        raise
    # zlib.error, NotImplementedError for odd compression, RuntimeError for encryption ...
    except Exception as error:
        raise _broken(path, error) from error


def _header(path: Path, stream: BinaryIO) -> _Header:
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        message = f"expected an npy array of version 1 or 2 in {path}, got {version}; resave it"
        raise InputError(message)
    if version == (2, 0):
        stream = _bounded(path, stream)
    try:
        shape, fortran, dtype = readers[version](stream)
    except MemoryError as error:
        # The parser's, for brackets in brackets.
        raise ValueError from error
    header = _Header(shape, dtype)
    if shape[:1] == (0,):
        message = f"expected at least one row in {path}, got none; add some"
        raise InputError(message)
    fault = _fault(header, fortran=fortran)
    if fault:
        message = (
            f"expected a numeric array (N, ...) in C order in {path}, got {fault}; save it "
            "with numpy.savez(path, images=numpy.ascontiguousarray(images))"
        )
        raise InputError(message)
    return header


def _fault(header: _Header, *, fortran: bool) -> str | None:
    """Reason why an array cannot be read row by row; None if it can."""
    shape = header.shape
    if header.dtype.hasobject:
        return "Python objects"
    if not shape or min(shape) < 1:
        return f"shape {shape}"
    if fortran and len(shape) > 1:
        return "Fortran order"
    return f"rows of {header.row_bytes} bytes" if header.row_bytes > _ROW_BYTES else None


def _bounded(path: Path, stream: BinaryIO) -> BinaryIO:
    """A header of version 2, whose stated length is not trusted."""
    length = _exactly(path, stream, 4)
    if int.from_bytes(length, "little") > _HEADER_BYTES:
        message = (
            f"expected an npy header of at most {_HEADER_BYTES} bytes in {path}, got more; save it "
            "again"
        )
        raise InputError(message)
    return io.BytesIO(length + _exactly(path, stream, int.from_bytes(length, "little")))


def _exactly(path: Path, stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if len(content) != count:
        message = (
            f"expected {count} more bytes in {path}, got {len(content)}: the file is truncated; "
            "save it again"
        )
        raise InputError(message)
    return content


def _skip(path: Path, stream: BinaryIO, count: int) -> None:
    if path.suffix.lower() == ".npy":
        # In an archive every byte counts for the checksum.
        stream.seek(count, os.SEEK_CUR)
        return
    while count > 0:
        count -= len(_exactly(path, stream, min(count, _SKIP_BYTES)))


def _broken(path: Path, error: Exception) -> InputError:
    """The error for a file that cannot be read, unless the machine is to blame for it."""
    raise_reading_fault(path, error)
    return InputError(
        f"expected an npy or npz file at {path}, got one that cannot be read ({brief(error)}); "
        "save it again or correct the path"
    )
