"""Scores of any number of inputs into one file, in flat memory, to be taken up where it was cut.

Finished parts lie beside the file in a folder of its name and ``.parts`` until all are there; then
they become the file.
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
"""Of a part, at least and at most."""

_PART_NUMBERS = 2**20
"""Of the images of a part, within these bounds: small ones are measured faster many at a time."""


@dataclass(frozen=True)
class Summary:
    """What a file of scores holds.

    Attributes:
        rows: inputs in all.
        unreadable: those that could not be read or measured.
        flagged: those that the verdict calls adversarial; None before calibration.
        reason: why the first of the unreadable could not be read; None when all could.
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
    """Score every input of the sources and write one row each, in their order.

    The columns: name, predicted, score, p_value, adversarial, each metric, error. An input that
    cannot be read has its reason as error and nothing else.

    Args:
        detector: with a combiner; without calibration p_value and adversarial stay empty.
        identity: of the detector, such as its file's SHA-256; a run that was cut off goes on only
            with the same.
        paths: of the sources, as :func:`leery.inputs.read` takes them.
        form: how they become what the model takes; the shape is that of the detector's fit.
        out: a .parquet, .csv or .jsonl file; an older one is replaced when all is done.
        resume: whether to go on with a run that was cut off; else its parts are done again.
        advance: is told the number of rows whenever some are done.

    Raises:
        NotFittedError: when the detector has no combiner.
        InputError: when the sources, the form or the kind of output are wrong, or a run to resume
            was of other inputs.
        OutputError: when the file cannot be written.
    """
    write = _writer(out)
    if detector.combiner_ is None:
        message = "expected a detector with a combiner, got one without; calibrate it first"
        raise NotFittedError(message)
    known = detector.inputs_
    form = replace(form, shape=known.shape, dtype=known.dtype)
    # What is wrong with the detector or the classifier is found before the first input is blamed.
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
    """Score items part by part; each part is added once its file is whole."""
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
    """Make the output of its parts.

    Raises:
        InputError: when inputs came or went meanwhile.
    """
    with atomic_stream(out) as stream:
        counter = write(stream, parts, schema)
        if counter.rows != total:
            message = f"expected {total} inputs, got {counter.rows}; run again without --resume"
            raise InputError(message)
    return counter


def _modules(detector: Detector) -> set[str]:
    """The modules whose code decides about a score: leery's, the classifier's, the metrics'."""
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
            *((name, pa.float64()) for name in detector.metrics),
            ("error", pa.string()),
        ]
    )


def _scored(detector: Detector, items: Sequence[Item], schema: pa.Schema) -> pa.Table:
    """A row for each item."""
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
    # A row without verdict takes a place that does not exist, which is null.
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
    """The verdicts on those rows, or why there is none; one bad image does not spoil the others."""
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
        message = f"expected an output of {', '.join(writers)}, got {out}; name one of these"
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
    """Counts rows on their way into the file."""

    def __init__(self) -> None:
        self._rows = self._unreadable = self._flagged = 0
        self._reason: str | None = None

    @property
    def rows(self) -> int:
        """How many there were."""
        return self._rows

    def tables(self, parts: Sequence[Path]) -> Iterator[pa.Table]:
        """The parts' tables, one after the other."""
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
        """What was counted; whether there were verdicts is the caller's to say."""
        flagged = self._flagged if judged else None
        return Summary(self._rows, self._unreadable, flagged, self._reason)
