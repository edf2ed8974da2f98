"""Merging of finished parts into one file, and counts of their rows."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from leery._files import atomic_stream
from leery.errors import InputError

__all__ = ["Summary", "check_type", "merged", "summary_of"]


@dataclass(frozen=True)
class Summary:
    """Counts of a score file.

    Attributes:
        rows: number of inputs.
        unreadable: number of inputs that could not be read or measured.
        flagged: number of inputs flagged as adversarial; None before calibration.
        reason: error of the first unreadable input; None if all could be read.
    """

    rows: int
    unreadable: int
    flagged: int | None
    reason: str | None = None


def check_type(out: Path) -> None:
    """Raise if an output is of an unsupported type.

    Raises:
        InputError: when its suffix is none of .parquet, .csv and .jsonl.
    """
    if out.suffix.lower() not in _WRITERS:
        message = f"expected an output file ({', '.join(_WRITERS)}), got {out}; rename it"
        raise InputError(message)


def merged(out: Path, parts: Sequence[Path], schema: pa.Schema, *, judged: bool) -> Summary:
    """Write the rows of parts into one file.

    Args:
        out: the file.
        parts: files of the parts, in order.
        schema: columns of the rows.
        judged: True if the rows hold verdicts.

    Raises:
        OutputError: when the file cannot be written.
    """
    counter = _Counter()
    with atomic_stream(out) as stream:
        _WRITERS[out.suffix.lower()](stream, counter.tables(parts), schema)
    return counter.summary(judged=judged)


def summary_of(parts: Sequence[Path], *, judged: bool) -> Summary:
    """The counts of the rows of parts; ``judged`` states whether they hold verdicts."""
    counter = _Counter()
    for _table in counter.tables(parts):
        pass
    return counter.summary(judged=judged)


def _write_parquet(stream: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with pq.ParquetWriter(stream, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_csv(stream: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with csv.CSVWriter(stream, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_jsonl(stream: BinaryIO, tables: Iterable[pa.Table], _schema: pa.Schema) -> None:
    for table in tables:
        stream.writelines((json.dumps(row) + "\n").encode() for row in table.to_pylist())


_WRITERS: Mapping[str, Callable[[BinaryIO, Iterable[pa.Table], pa.Schema], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
"""Functions that write rows into a stream, by the suffix of the file."""


class _Counter:
    """Counts rows while they are read."""

    def __init__(self) -> None:
        self._rows = self._unreadable = self._flagged = 0
        self._reason: str | None = None

    def tables(self, parts: Sequence[Path]) -> Iterator[pa.Table]:
        """Iterate over the tables of the parts."""
        for part in parts:
            table = pq.read_table(part)
            errors = table.column("error")
            if self._reason is None and errors.null_count < len(errors):
                self._reason = errors.drop_null()[0].as_py()
            verdicts = table.column("adversarial").to_numpy()
            self._rows += len(table)
            self._unreadable += len(errors) - errors.null_count
            self._flagged += int(np.equal(verdicts, True).sum())
            yield table

    def summary(self, *, judged: bool) -> Summary:
        """Summary of the counts; ``judged`` states whether there were verdicts."""
        flagged = self._flagged if judged else None
        return Summary(self._rows, self._unreadable, flagged, self._reason)
