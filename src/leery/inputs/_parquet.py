"""Batch-by-batch reading of Parquet files with compressed images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from leery._files import raise_reading_fault
from leery.errors import InputError, brief, listed
from leery.inputs._format import Format, UnreadableError
from leery.inputs._item import Item, printable

__all__ = ["parquet_length", "read_parquet"]

_ROWS = 32
"""Number of rows read at once; small, because a row may be large."""

_LAST_LABEL = 2**31

_BINARY = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def parquet_length(path: Path, form: Format) -> int:
    """The number of rows of a parquet file.

    Raises:
        InputError: when the file is not a Parquet file or lacks the column.
    """
    with _opened(path) as file:
        _columns(path, file.schema_arrow, form)
        return int(file.metadata.num_rows)


def read_parquet(path: Path, form: Format, start: int) -> Iterator[Item]:
    """The rows of a parquet file from ``start`` on.

    Images are bytes, or structs with a field "bytes", as written by Hugging Face's libraries.

    Raises:
        InputError: when the file is not a Parquet file or lacks the column.
    """
    with _opened(path) as file:
        columns = _columns(path, file.schema_arrow, form)
        groups, row = _from(file, start)
        for batch in file.iter_batches(_ROWS, groups, columns):
            pictures = batch.column(form.images_key)
            labels = batch.column(form.labels_key) if form.labels_key in columns else None
            for place in range(batch.num_rows):
                if row >= start:
                    label = None if labels is None else labels[place].as_py()
                    yield _item(f"{printable(path)}#{row}", pictures[place].as_py(), form, label)
                row += 1


def _item(name: str, value: object, form: Format, label: int | None) -> Item:
    if label is not None and not 0 <= label <= _LAST_LABEL:
        return Item(name, None, None, f"class {label}, outside 0..{_LAST_LABEL}")
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        return Item(name, None, label, "no image bytes")
    try:
        return Item(name, form.picture(content), label)
    except UnreadableError as error:
        return Item(name, None, label, str(error))


def _columns(path: Path, schema: pa.Schema, form: Format) -> list[str]:
    if form.images_key not in schema.names:
        message = (
            f"expected a column {form.images_key!r} in {path}, got {listed(schema.names)}; "
            "rename yours or pass its name (--images-key)"
        )
        raise InputError(message)
    kind = _value_type(schema, form.images_key)
    if not (pa.types.is_struct(kind) or any(check(kind) for check in _BINARY)):
        message = (
            f"expected image bytes in column {form.images_key!r} of {path}, got {kind}; "
            "store them as png"
        )
        raise InputError(message)
    if form.labels_key is None or form.labels_key not in schema.names:
        return [form.images_key]
    if not pa.types.is_integer(_value_type(schema, form.labels_key)):
        message = (
            f"expected integers in column {form.labels_key!r} of {path}, got "
            f"{schema.field(form.labels_key).type}; number the classes from 0"
        )
        raise InputError(message)
    return [form.images_key, form.labels_key]


def _value_type(schema: pa.Schema, name: str) -> pa.DataType:
    """The type of a column's values, also if the column is dictionary-encoded."""
    kind = schema.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _from(file: pq.ParquetFile, start: int) -> tuple[list[int], int]:
    """The row groups that hold the rows from ``start`` on, and the first row of the first."""
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first + rows > start:
            return list(range(group, file.num_row_groups)), first
        first += rows
    return [], first


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise_reading_fault(path, error)
        message = (
            f"expected a parquet file at {path}, got one that cannot be read ({brief(error)}); "
            "write it again or correct the path"
        )
        raise InputError(message) from error
