"""What is scored, cut into parts by the inputs alone."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path

import pyarrow.parquet as pq

from leery._files import check_output
from leery.detector import Detector
from leery.errors import InputError, NotFittedError
from leery.inputs import Format, count, files, printable, read
from leery.scoring._output import check_type
from leery.scoring._rows import rows_of
from leery.tasks import Parts, identity_of, open_parts, parts_folder, single_threaded

__all__ = ["Advance", "Plan"]

Advance = Callable[[int], object]
"""Function that is called with the number of newly finished rows."""

_PART_ROWS = 256, 1024
"""Minimum and maximum number of rows of a part."""

_PART_NUMBERS = 2**20
"""Target number of elements of a part's images; small images form parts with more rows."""


class Plan:
    """The parts of a score file, each of consecutive inputs.

    Every process that makes a plan of the same arguments gets the same parts, and a part has the
    same bytes whoever scores it.

    Args:
        detector: detector with a combiner.
        identity: identity of the detector, such as the SHA-256 of its file.
        paths: paths of the sources, as for :func:`leery.inputs.read`.
        form: conversion of the sources to model inputs; shape and dtype are those of the fit.
        out: the score file.

    Attributes:
        detector: detector with a combiner.
        paths: paths of the sources.
        form: conversion of the sources to the detector's inputs.
        out: the score file.
        sizes: number of rows of each part.
        identity: SHA-256 of everything that the rows depend on.

    Raises:
        NotFittedError: when the detector has no combiner.
        InputError: when the sources, the form or the type of output are invalid.
        OutputError: when the folder of the output cannot be written to.
    """

    def __init__(
        self, detector: Detector, identity: str, paths: Sequence[Path], form: Format, out: Path
    ) -> None:
        check_type(out)
        if detector.combiner_ is None:
            message = "expected a detector with a combiner, got one without; calibrate it first"
            raise NotFittedError(message)
        known = detector.inputs_
        # Raises on a faulty detector or classifier before the error is attributed to an input.
        detector.explain_plan()
        check_output(out)
        self.detector, self.out = detector, out
        self.paths, self.form = paths, replace(form, shape=known.shape, dtype=known.dtype)
        # The output may lie in a folder that is scored.
        self._own = {out.resolve(), parts_folder(out).resolve()}
        self.sizes = _part_sizes(count(paths, self.form, without=self._own), known.shape)
        self._listing = self._listed()
        facts = [identity, self._listing, str(self.form), self.sizes]
        self.identity = identity_of(facts, _modules(detector))

    def open(
        self, *, resume: bool, shared: bool = False, others: Sequence[Path] = ()
    ) -> AbstractContextManager[Parts]:
        """Open the folder of the parts, as :func:`leery.tasks.open_parts` does."""
        return open_parts(
            parts_folder(self.out),
            self.identity,
            self.sizes,
            resume=resume,
            count_rows=_rows_in,
            shared=shared,
            others=others,
        )

    def score(self, parts: Parts, numbers: Sequence[int], advance: Advance) -> None:
        """Score the inputs of parts, and write each part once it is complete.

        Args:
            parts: where they are written.
            numbers: numbers of the parts, in ascending order.
            advance: function that is called with the number of newly finished rows.

        Raises:
            InputError: when inputs were removed since the plan was made.
        """
        with single_threaded():
            for stretch in _stretches(numbers):
                start = sum(self.sizes[: stretch[0]])
                items = read(self.paths, self.form, start=start, without=self._own)
                for number in stretch:
                    table = rows_of(self.detector, list(islice(items, self.sizes[number])))
                    if len(table) != self.sizes[number]:
                        raise InputError(_CHANGED)
                    with parts.writing(number) as stream:
                        pq.write_table(table, stream)
                    advance(len(table))

    def check_unchanged(self) -> None:
        """Raise if inputs were added, removed or changed since the plan was made.

        Raises:
            InputError: when they were.
        """
        if self._listed() != self._listing:
            raise InputError(_CHANGED)

    def _listed(self) -> str:
        """The SHA-256 of the names, sizes and times of the inputs' files."""
        listing = hashlib.sha256()
        for path in files(self.paths, without=self._own):
            stat = path.stat() if path.exists() else path.lstat()
            listing.update(f"{printable(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return listing.hexdigest()


_CHANGED = (
    "expected the inputs to stay as they are while they are scored, got changed ones; run again "
    "without --resume"
)


def _rows_in(part: Path) -> int:
    return int(pq.read_metadata(part).num_rows)


def _modules(detector: Detector) -> set[str]:
    """Names of the modules whose code determines a score: leery, classifier and metrics."""
    parts = [*detector.model.modules(), *detector.metrics_.values()]
    return {__name__, *(type(part).__module__ for part in parts)}


def _part_sizes(total: int, shape: Sequence[int]) -> list[int]:
    """The number of images in each part of ``total`` images of that shape."""
    least, most = _PART_ROWS
    size = min(most, max(least, _PART_NUMBERS // math.prod(shape)))
    return [min(size, total - start) for start in range(0, total, size)]


def _stretches(numbers: Iterable[int]) -> Iterator[list[int]]:
    """Stretches of consecutive numbers."""
    for _, stretch in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        yield [number for _, number in stretch]
