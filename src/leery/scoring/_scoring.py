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
from leery.detector import Detector, SavedDetector
from leery.errors import InputError, NotFittedError
from leery.inputs import Format, count, files, printable, read
from leery.scoring._output import Summary, check_type, merged, summary_of
from leery.scoring._rows import row_schema, rows_of
from leery.tasks import (
    Advance,
    Engine,
    Parts,
    Shard,
    identity_of,
    open_parts,
    parts_folder,
    single_threaded,
)

__all__ = ["Scoring", "score_to_file", "scoring_of"]

Progress = Callable[[int, int], object]
"""Function of the number of finished rows, and of all."""

_PART_ROWS = 256, 1024
"""Minimum and maximum number of rows of a part."""

_PART_NUMBERS = 2**20
"""Target number of elements of a part's images; small images form parts with more rows."""


class Scoring:
    """A score file in the making: its parts, each of consecutive inputs, and how they are merged.

    Every process that passes the same arguments gets the same parts, and a part has the same bytes
    whoever scores it. Finished parts are stored in a folder next to the file, with its name and
    ``.parts``.

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

    def compute(self, parts: Parts, numbers: Sequence[int], advance: Advance) -> None:
        """Score the inputs of parts, and write each part once it is complete.

        Args:
            parts: where they are written.
            numbers: numbers of the parts, in ascending order.
            advance: function that is called with the number of newly finished rows.

        Raises:
            InputError: when inputs were removed since this was made.
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

    def run(
        self,
        *,
        resume: bool = False,
        engine: Engine | None = None,
        progress: Progress = lambda _done, _total: None,
    ) -> Summary:
        """Score every input and write the file.

        Args:
            resume: True to use the parts of an interrupted run or of shards, False to discard them.
            engine: computes the parts; by default this process does, with one thread.
            progress: function that is called with the numbers of finished rows and of all.

        Raises:
            InputError: when the parts to resume had other inputs, or inputs change meanwhile.
            OutputError: when another process uses the folder, or a file cannot be written.
        """
        with self.open(resume=resume) as parts:
            self._score(parts, None, engine, progress)
            return self._merged(parts)

    def run_shard(
        self,
        shard: Shard,
        *,
        engine: Engine | None = None,
        progress: Progress = lambda _done, _total: None,
    ) -> Summary:
        """Score one share of the inputs and keep its parts, for :meth:`merge`.

        Shards may run at the same time, on machines that share the folder of the output or with a
        folder each. Finished parts are not scored again.

        Args:
            shard: which share.
            engine: as for :meth:`run`.
            progress: as for :meth:`run`, with the rows of this share.

        Returns:
            Counts of the rows of this share.

        Raises:
            InputError, OutputError: as :meth:`run`.
        """
        with self.open(resume=True, shared=True) as parts:
            self._score(parts, shard, engine, progress)
            return summary_of(parts.files(shard), judged=self._judged)

    def merge(self, others: Sequence[Path] = ()) -> Summary:
        """Write the file that :meth:`run` would write from the parts of all shards.

        Args:
            others: further folders of parts, such as those of other machines; they are not removed.

        Raises:
            InputError: when a part is missing, or the parts had other inputs.
            OutputError: as :meth:`run`.
        """
        with self.open(resume=True, others=others) as parts:
            return self._merged(parts)

    def _score(
        self, parts: Parts, shard: Shard | None, engine: Engine | None, progress: Progress
    ) -> None:
        """Score the missing parts of all or of a shard.

        Raises:
            InputError: when inputs were added, removed or changed since this was made.
        """
        missing = parts.missing(shard)
        total = sum(self.sizes[number] for number in parts.numbers(shard))
        done = total - sum(self.sizes[number] for number in missing)
        progress(done, total)

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            progress(done, total)

        (engine or Scoring.compute)(self, parts, missing, advance)
        if self._listed() != self._listing:
            raise InputError(_CHANGED)

    def _merged(self, parts: Parts) -> Summary:
        """Merge all parts into the file, and remove them."""
        schema = row_schema(self.detector)
        summary = merged(self.out, parts.files(), schema, judged=self._judged)
        parts.discard()
        return summary

    @property
    def _judged(self) -> bool:
        return self.detector.calibration_ is not None

    def _listed(self) -> str:
        """The SHA-256 of the names, sizes and times of the inputs' files."""
        listing = hashlib.sha256()
        for path in files(self.paths, without=self._own):
            stat = path.stat() if path.exists() else path.lstat()
            listing.update(f"{printable(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return listing.hexdigest()


def scoring_of(saved: SavedDetector, paths: Sequence[Path], form: Format, out: Path) -> Scoring:
    """The scoring by a saved detector, for other processes."""
    return Scoring(saved.load(), saved.identity, paths, form, out)


def score_to_file(
    detector: Detector,
    identity: str,
    paths: Sequence[Path],
    form: Format,
    out: Path,
    *,
    resume: bool = False,
    engine: Engine | None = None,
    progress: Progress = lambda _done, _total: None,
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
        engine: computes the parts; by default this process does, with one thread.
        progress: function that is called with the numbers of finished rows and of all.

    Raises:
        NotFittedError: when the detector has no combiner.
        InputError: when the sources, the form or the type of output are invalid, or the run to
            resume had other inputs.
        OutputError: when the file cannot be written.
    """
    scoring = Scoring(detector, identity, paths, form, out)
    return scoring.run(resume=resume, engine=engine, progress=progress)


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
