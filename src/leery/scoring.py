"""Scores of any number of inputs into one file, in flat memory, to be taken up where it was cut.

Finished parts lie beside the file in a folder of its name and ``.parts`` until all are there; then
they become the file. Whatever kills the process, a part is whole or absent.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import csv

from leery._files import atomic_stream, make_folder, write_atomically
from leery.detector import Detector, MetricTable
from leery.errors import InputError
from leery.inputs import Format, Item, count, read

__all__ = ["Summary", "score_to_file"]

_PART_ROWS = 1024
_MANIFEST = "run.json"


@dataclass(frozen=True)
class Summary:
    """What a file of scores holds.

    Attributes:
        rows: inputs in all.
        unreadable: those that could not be read.
        flagged: those that the verdict calls adversarial; None before calibration.
    """

    rows: int
    unreadable: int
    flagged: int | None


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
    schema = _schema(detector)
    shape, _ = detector.inputs_
    form = replace(form, shape=shape)
    make_folder(out.parent)
    folder = out.with_name(f"{out.name}.parts")
    total = count(paths, form)
    parts = _begin(folder, _run(identity, paths, form, total), resume=resume)
    done = len(parts) * _PART_ROWS
    advance(min(done, total))
    items = read(paths, form, start=done) if done < total else iter(())
    while chunk := list(islice(items, _PART_ROWS)):
        part = folder / f"{len(parts):08d}.parquet"
        with atomic_stream(part) as stream:
            pq.write_table(_scored(detector, chunk, schema), stream)
        parts.append(part)
        advance(len(chunk))
    with atomic_stream(out) as stream:
        summary = write(stream, parts, schema)
    shutil.rmtree(folder)
    return summary


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
    columns = {name: np.full(len(items), None, dtype=object) for name in schema.names}
    columns["name"][:] = [item.name for item in items]
    columns["error"][:] = [item.error or None for item in items]
    images = [item.image for item in items if item.image is not None]
    if images:
        whole = detector.measure(torch.stack(images))
        places = np.flatnonzero([item.image is not None for item in items])
        finite = np.isfinite(whole.values).all(axis=1)
        columns["error"][places[~finite]] = "a metric is not finite"
        rows = places[finite]
        table = MetricTable(whole.names, whole.values[finite], whole.predicted[finite])
        scores = detector.judge(table)
        columns["predicted"][rows], columns["score"][rows] = table.predicted, scores
        for name in table.names:
            columns[name][rows] = table.column(name)
        if detector.calibration_ is not None:
            columns["p_value"][rows] = detector.calibration_.p_values(scores, table.predicted)
            columns["adversarial"][rows] = detector.calibration_.flagged(scores, table.predicted)
    return pa.table({name: column.tolist() for name, column in columns.items()}, schema)


def _run(identity: str, paths: Sequence[Path], form: Format, total: int) -> str:
    """What a run is of, so that another is not taken for it."""
    sources = [
        (str(path), stat.st_size, stat.st_mtime_ns)
        for path, stat in ((path, path.stat()) for path in paths)
    ]
    facts = [identity, sources, asdict(form), total, _PART_ROWS]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _begin(folder: Path, run: str, *, resume: bool) -> list[Path]:
    """The finished parts of the run, in a folder that is ready for more."""
    manifest = folder / _MANIFEST
    if resume and manifest.is_file():
        if manifest.read_text() != run:
            message = (
                f"expected the detector and inputs of the run that left {folder}, got others; "
                "run without --resume to score them anew"
            )
            raise InputError(message)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        write_atomically(manifest, run)
    return sorted(folder.glob("[0-9]*.parquet"))


def _writer(out: Path) -> Callable[[BinaryIO, Sequence[Path], pa.Schema], Summary]:
    writers = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}
    if out.suffix.lower() not in writers:
        message = f"expected an output of {', '.join(writers)}, got {out}; name one of these"
        raise InputError(message)
    return writers[out.suffix.lower()]


def _write_parquet(stream: BinaryIO, parts: Sequence[Path], schema: pa.Schema) -> Summary:
    counter = _Counter()
    with pq.ParquetWriter(stream, schema) as writer:
        for table in counter.tables(parts):
            writer.write_table(table)
    return counter.summary()


def _write_csv(stream: BinaryIO, parts: Sequence[Path], schema: pa.Schema) -> Summary:
    counter = _Counter()
    with csv.CSVWriter(stream, schema) as writer:
        for table in counter.tables(parts):
            writer.write_table(table)
    return counter.summary()


def _write_jsonl(stream: BinaryIO, parts: Sequence[Path], _schema: pa.Schema) -> Summary:
    counter = _Counter()
    for table in counter.tables(parts):
        stream.writelines((json.dumps(row) + "\n").encode() for row in table.to_pylist())
    return counter.summary()


class _Counter:
    """Counts rows on their way into the file."""

    def __init__(self) -> None:
        self._rows = self._unreadable = self._flagged = 0
        self._judged = False

    def tables(self, parts: Sequence[Path]) -> Iterator[pa.Table]:
        """The parts' tables, one after the other."""
        for part in parts:
            table = pq.read_table(part)
            errors = table.column("error")
            verdicts = table.column("adversarial").to_numpy()
            self._rows += len(table)
            self._unreadable += len(errors) - errors.null_count
            self._flagged += int(np.equal(verdicts, True).sum())
            self._judged |= table.column("adversarial").null_count < len(table)
            yield table

    def summary(self) -> Summary:
        """What was counted."""
        return Summary(self._rows, self._unreadable, self._flagged if self._judged else None)
