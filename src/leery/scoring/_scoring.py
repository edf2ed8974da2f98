"""What is scored, cut into parts by the inputs alone."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from leery._files import check_output, raise_reading_fault
from leery.detector import Detector, SavedDetector
from leery.errors import LeeryWarning, NotFittedError
from leery.inputs import Cuts, Format, Moments
from leery.models import device_of
from leery.scoring._output import Summary, check_type, merged, summary_of
from leery.scoring._rows import row_schema, rows_of
from leery.tasks import (
    Advance,
    Engine,
    Parts,
    Progress,
    Shard,
    compute_missing,
    identity_of,
    no_progress,
    open_parts,
    parts_folder,
    single_threaded,
)

__all__ = ["Scoring", "score_to_file", "scoring_of"]


class Scoring:
    """A score file in the making: its parts, each of consecutive inputs, and how they are merged.

    Every process that passes the same arguments gets the same parts, and a part has the same bytes
    whoever scores it, unless the detector draws new dropout masks at each call. Finished parts are
    stored in a folder next to the file, with its name and ``.parts``.

    Args:
        detector: detector with a combiner.
        identity: identity of the detector, such as the SHA-256 of its file.
        paths: paths of the sources, as for :func:`leery.inputs.read`.
        form: conversion of the sources to model inputs; shape and dtype are those of the fit.
        out: the score file.

    Attributes:
        detector: detector with a combiner.
        out: the score file.
        identity: SHA-256 of everything that the rows depend on.
        facts: what the rows depend on by name, as hashes, and the type of device; these must be
            the same on all machines.

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
        form = replace(form, shape=known.shape, dtype=known.dtype)
        # The output may lie in a folder that is scored.
        own = {out.resolve(), parts_folder(out).resolve()}
        self._cuts = Cuts(paths, form, known.shape, without=own)
        device = device_of(detector.model).type
        facts = [identity, self._cuts.listing, str(form), self.sizes, device]
        self.identity = identity_of(facts, _modules(detector))
        self.facts = {
            "detector": identity,
            "inputs": self._cuts.listing,
            "device": device,
            "code and libraries": self.identity,
        }

    @property
    def sizes(self) -> Sequence[int]:
        """The number of rows of each part."""
        return self._cuts.sizes

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
        with single_threaded(), warnings.catch_warnings():
            # The scale of the inputs was checked once, instead of that of each batch.
            warnings.simplefilter("ignore", LeeryWarning)
            for number, found in self._cuts.items(numbers):
                rows = pa.concat_tables([rows_of(self.detector, items) for items in found])
                with parts.writing(number) as stream:
                    pq.write_table(rows, stream)
                advance(self.sizes[number])

    def run(
        self,
        *,
        resume: bool = False,
        engine: Engine | None = None,
        progress: Progress = no_progress,
    ) -> Summary:
        """Score every input and write the file.

        Args:
            resume: True to use the parts of an interrupted run or of shards, False to discard them.
            engine: computes the parts; by default this process does, with one thread.
            progress: function that is called with the number of finished rows and the total number.

        Raises:
            InputError: when the parts to resume belong to other inputs, or inputs change during the
                run.
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
        progress: Progress = no_progress,
    ) -> Summary:
        """Score the inputs of one shard and keep its parts, for :meth:`merge`.

        Shards may run at the same time, on machines that share the folder of the output or that
        have a folder each. Finished parts are not scored again.

        Args:
            shard: which shard.
            engine: as for :meth:`run`.
            progress: as for :meth:`run`, with the rows of this shard.

        Returns:
            Counts of the rows of this shard.

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
            InputError: when a part is missing, or the parts belong to other inputs.
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
        self._check_scale()
        compute_missing(self, parts, shard, engine, progress)
        self._cuts.check_unchanged()

    def _check_scale(self) -> None:
        """Warn if the first inputs seem to be on another scale than the training images."""
        moments, count = Moments(), 0
        for _, found in self._cuts.items(range(len(self.sizes))[:1]):
            for image in (item.image for items in found for item in items):
                if image is not None:
                    moments.add(image)
                    count += 1
        self.detector.inputs_.compare(moments, count, "inputs")

    def _merged(self, parts: Parts) -> Summary:
        """Merge all parts into the file, and remove them."""
        schema = row_schema(self.detector)
        summary = merged(self.out, parts.files(), schema, judged=self._judged)
        parts.discard()
        return summary

    @property
    def _judged(self) -> bool:
        return self.detector.calibration_ is not None


def scoring_of(saved: SavedDetector, paths: Sequence[Path], form: Format, out: Path) -> Scoring:
    """The scoring by a saved detector, for other processes."""
    return Scoring(*saved.load(), paths, form, out)


def score_to_file(
    detector: Detector,
    identity: str,
    paths: Sequence[Path],
    form: Format,
    out: Path,
    *,
    resume: bool = False,
    engine: Engine | None = None,
    progress: Progress = no_progress,
) -> Summary:
    """Score every input of the sources and write one row per input, in order.

    The columns are name, predicted, score, p_value, adversarial, with a sentinel sentinel and
    sentinel_flagged, then each metric, and error. For an input that cannot be read, error holds the
    reason and all other columns but name are empty.

    Args:
        detector: detector with a combiner; without calibration p_value and adversarial are empty.
        identity: identity of the detector, such as the SHA-256 of its file; an interrupted run can
            be resumed only with the same identity.
        paths: paths of the sources, as for :func:`leery.inputs.read`.
        form: conversion of the sources to model inputs; shape and dtype are those of the fit.
        out: a .parquet, .csv or .jsonl file; an older one is replaced at the end.
        resume: True to resume an interrupted run; False to discard its parts.
        engine: computes the parts; by default this process does, with one thread.
        progress: function that is called with the number of finished rows and the total number.

    Raises:
        NotFittedError: when the detector has no combiner.
        InputError: when the sources, the form or the type of output are invalid, or the run to
            resume had other inputs.
        OutputError: when the file cannot be written.
    """
    scoring = Scoring(detector, identity, paths, form, out)
    return scoring.run(resume=resume, engine=engine, progress=progress)


def _rows_in(part: Path) -> int:
    """The number of rows of a part; 0 if its file is damaged.

    Raises:
        MachineError: when the file cannot be read for another reason.
    """
    try:
        return int(pq.read_metadata(part).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise_reading_fault(part, error)
        return 0


def _modules(detector: Detector) -> set[str]:
    """Names of the modules whose code determines a score: leery, classifier and metrics."""
    parts = [*detector.model.modules(), *detector.metrics_.values()]
    return {__name__, *(type(part).__module__ for part in parts)}
