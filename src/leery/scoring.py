"""Resumable scoring of any number of inputs into one file, in constant memory.

Finished parts are stored in a folder next to the file, with its name and ``.parts``, and are merged
into the file when all are complete.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import csv
from torch import Tensor

from leery._files import atomic_stream, check_output
from leery.detector import Detector, Verdicts
from leery.errors import InputError, NotFittedError
from leery.inputs import Format, Item, count, files, printable, read
from leery.tasks import discard_parts, identity_of, open_parts, part_name, parts_folder

__all__ = ["Summary", "score_to_file"]

_PART_ROWS = 256, 1024
"""Minimum and maximum number of rows of a part."""

_PART_NUMBERS = 2**20
"""Target number of elements of a part's images; small images form parts with more rows."""


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


def score_to_file(
    detector: Detector,
    identity: str,
    paths: Sequence[Path],
    form: Format,
    out: Path,
    *,
    resume: bool = False,
    advance: Callable[[int], object] = lambda _rows: None,
) -> Summary:
    """Score every input of the sources and write one row per input, in order.

    The columns are name, predicted, score, p_value, adversarial, each metric, error. For an input
    that cannot be read, error holds the reason and all other columns but name are empty.

    Args:
        detector: detector with a combiner; without calibration p_value and adversarial are empty.
        identity: identity of the detector, such as the SHA-256 of its file; an interrupted run can
            be resumed only with the same identity.
        paths: paths of the sources, as for :func:`leery.inputs.read`.
        form: conversion of the sources to model inputs; shape and dtype are those of the fit.
        out: a .parquet, .csv or .jsonl file; an older one is replaced at the end.
        resume: True to resume an interrupted run; False to discard its parts.
        advance: function that is called with the number of newly finished rows.

    Raises:
        NotFittedError: when the detector has no combiner.
        InputError: when the sources, the form or the type of output are invalid, or the run to
            resume had other inputs.
        OutputError: when the file cannot be written.
    """
    write = _writer(out)
    if detector.combiner_ is None:
        message = "expected a detector with a combiner, got one without; calibrate it first"
        raise NotFittedError(message)
    known = detector.inputs_
    form = replace(form, shape=known.shape, dtype=known.dtype)
    # Raises on a faulty detector or classifier before the error is attributed to an input.
    detector.explain_plan()
    check_output(out)
    folder = parts_folder(out)
    # The output may lie in a folder that is scored.
    own = {out.resolve(), folder.resolve()}
    total = count(paths, form, without=own)
    sizes = _part_sizes(total, known.shape)
    facts = [identity, _listing(files(paths, without=own)), str(form), sizes]
    with open_parts(
        folder,
        identity_of(facts, _modules(detector)),
        sizes,
        resume=resume,
        count_rows=lambda part: int(pq.read_metadata(part).num_rows),
    ) as parts:
        done = sum(sizes[: len(parts)])
        advance(done)
        items = read(paths, form, start=done, without=own) if done < total else iter(())
        _score_parts(detector, items, parts, folder, max(sizes, default=0), advance)
        counter = _put_together(write, out, parts, _schema(detector), total)
        discard_parts(folder)
    return counter.summary(judged=detector.calibration_ is not None)


def _score_parts(
    detector: Detector,
    items: Iterator[Item],
    parts: list[Path],
    folder: Path,
    size: int,
    advance: Callable[[int], object],
) -> None:
    """Score items part by part; a part is added once its file is complete."""
    schema = _schema(detector)
    while chunk := list(islice(items, size)):
        part = folder / part_name(len(parts))
        with atomic_stream(part) as stream:
            pq.write_table(_scored(detector, chunk, schema), stream)
        parts.append(part)
        advance(len(chunk))


def _put_together(
    write: "_Write", out: Path, parts: Sequence[Path], schema: pa.Schema, total: int
) -> "_Counter":
    """Merge the parts into the output.

    Raises:
        InputError: when inputs were added or removed meanwhile.
    """
    with atomic_stream(out) as stream:
        counter = write(stream, parts, schema)
        if counter.rows != total:
            message = f"expected {total} inputs, got {counter.rows}; run again without --resume"
            raise InputError(message)
    return counter


def _modules(detector: Detector) -> set[str]:
    """Names of the modules whose code determines a score: leery, classifier and metrics."""
    parts = [*detector.model.modules(), *detector.metrics_.values()]
    return {__name__, *(type(part).__module__ for part in parts)}


def _part_sizes(total: int, shape: Sequence[int]) -> list[int]:
    """The number of images in each part of ``total`` images of that shape."""
    least, most = _PART_ROWS
    size = min(most, max(least, _PART_NUMBERS // math.prod(shape)))
    return [min(size, total - start) for start in range(0, total, size)]


def _schema(detector: Detector) -> pa.Schema:
    return pa.schema(
        [
            ("name", pa.string()),
            ("predicted", pa.int64()),
            ("score", pa.float64()),
            ("p_value", pa.float64()),
            ("adversarial", pa.bool_()),
            *(
                [("sentinel", pa.float64()), ("sentinel_flagged", pa.bool_())]
                if detector.sentinel_ is not None
                else []
            ),
            *((name, pa.float64()) for name in detector.metrics),
            ("error", pa.string()),
        ]
    )


def _scored(detector: Detector, items: Sequence[Item], schema: pa.Schema) -> pa.Table:
    """Score items and return a table with one row per item."""
    errors = [item.error or None for item in items]
    readable = np.flatnonzero([item.image is not None for item in items])
    places: list[np.ndarray] = []
    tables: list[pa.Table] = []
    for rows, found in _judged(detector, readable, [item.image for item in items]):
        if isinstance(found, str):
            errors[rows[0]] = found
        else:
            places.append(rows)
            tables.append(found.to_arrow())
    own = [field for field in schema if field.name not in ("name", "error")]
    verdicts = pa.concat_tables([pa.schema(own).empty_table(), *tables])
    # A row without a verdict has a masked index, which gives nulls.
    order = np.full(len(items), -1)
    order[np.concatenate([*places, np.empty(0, int)])] = np.arange(len(verdicts))
    taken = verdicts.take(pa.array(order, mask=order < 0))
    names = pa.array([item.name for item in items], pa.string())
    columns = {"name": names, "error": pa.array(errors, pa.string())}
    for column in own:
        columns[column.name] = taken.column(column.name)
    return pa.table([columns[name] for name in schema.names], schema)


def _judged(
    detector: Detector, rows: np.ndarray, images: Sequence[Tensor | None]
) -> Iterator[tuple[np.ndarray, Verdicts | str]]:
    """Verdicts on rows, or the reason why there is none; a bad image does not affect others."""
    if not len(rows):
        return
    reason = "a metric is not finite"
    try:
        shown = [image for row in rows if (image := images[row]) is not None]
        verdicts = detector.judge(torch.stack(shown))
        if np.isfinite(verdicts.metrics).all():
            yield rows, verdicts
            return
    except InputError as error:
        reason = str(error)
    if len(rows) == 1:
        yield rows, f"cannot be measured: {reason}"
        return
    half = len(rows) // 2
    yield from _judged(detector, rows[:half], images)
    yield from _judged(detector, rows[half:], images)


def _listing(paths: Iterator[Path]) -> str:
    """The SHA-256 of the names, sizes and times of files."""
    listing = hashlib.sha256()
    for path in paths:
        stat = path.stat() if path.exists() else path.lstat()
        listing.update(f"{printable(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return listing.hexdigest()


_Write = Callable[[BinaryIO, Sequence[Path], pa.Schema], "_Counter"]
"""Writes the rows of parts into a stream."""


def _writer(out: Path) -> _Write:
    writers = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}
    if out.suffix.lower() not in writers:
        message = f"expected an output file ({', '.join(writers)}), got {out}; rename it"
        raise InputError(message)
    return writers[out.suffix.lower()]


def _write_parquet(stream: BinaryIO, parts: Sequence[Path], schema: pa.Schema) -> "_Counter":
    counter = _Counter()
    with pq.ParquetWriter(stream, schema) as writer:
        for table in counter.tables(parts):
            writer.write_table(table)
    return counter


def _write_csv(stream: BinaryIO, parts: Sequence[Path], schema: pa.Schema) -> "_Counter":
    counter = _Counter()
    with csv.CSVWriter(stream, schema) as writer:
        for table in counter.tables(parts):
            writer.write_table(table)
    return counter


def _write_jsonl(stream: BinaryIO, parts: Sequence[Path], _schema: pa.Schema) -> "_Counter":
    counter = _Counter()
    for table in counter.tables(parts):
        stream.writelines((json.dumps(row) + "\n").encode() for row in table.to_pylist())
    return counter


class _Counter:
    """Counts rows while they are written to the file."""

    def __init__(self) -> None:
        self._rows = self._unreadable = self._flagged = 0
        self._reason: str | None = None

    @property
    def rows(self) -> int:
        """Number of rows written."""
        return self._rows

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
