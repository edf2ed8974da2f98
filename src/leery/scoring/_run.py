"""Scoring of any number of inputs into one file, in constant memory.

Finished parts are stored in a folder next to the file, with its name and ``.parts``, and are merged
into the file when all are complete.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from leery.detector import Detector
from leery.inputs import Format
from leery.scoring._output import Summary, merged, summary_of
from leery.scoring._plan import Advance, Plan
from leery.scoring._rows import row_schema
from leery.tasks import Parts, Shard

__all__ = ["Engine", "merge_scores", "score_shard", "score_to_file"]

Engine = Callable[[Plan, Parts, Sequence[int], Advance], None]
"""Scores the parts of a plan whose numbers are given, such as :meth:`Plan.score`."""

Progress = Callable[[int, int], object]
"""Function of the number of finished rows, and of all."""


def score_to_file(
    detector: Detector,
    identity: str,
    paths: Sequence[Path],
    form: Format,
    out: Path,
    *,
    resume: bool = False,
    engine: Engine = Plan.score,
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
        resume: True to resume an interrupted run, or complete the parts of shards; False to discard
            finished parts.
        engine: scores the parts; by default this process does, with one thread.
        progress: function that is called with the numbers of finished rows and of all rows.

    Raises:
        NotFittedError: when the detector has no combiner.
        InputError: when the sources, the form or the type of output are invalid, or the run to
            resume had other inputs.
        OutputError: when the file cannot be written.
    """
    plan = Plan(detector, identity, paths, form, out)
    with plan.open(resume=resume) as parts:
        _score(plan, parts, None, engine, progress)
        return _merge(plan, parts)


def score_shard(
    detector: Detector,
    identity: str,
    paths: Sequence[Path],
    form: Format,
    out: Path,
    shard: Shard,
    *,
    engine: Engine = Plan.score,
    progress: Progress = lambda _done, _total: None,
) -> Summary:
    """Score one share of the inputs of :func:`score_to_file`, and keep its parts.

    Shards may run at the same time, on machines that share the folder of the output or with a
    folder each. Parts that are finished are not scored again. :func:`merge_scores` writes the file.

    Args:
        detector: as for :func:`score_to_file`, as are all arguments but ``shard``.
        identity: identity of the detector.
        paths: paths of the sources, with the same names and times on every machine.
        form: conversion of the sources to model inputs.
        out: the file that will be written.
        shard: which share.
        engine: scores the parts; by default this process does, with one thread.
        progress: function that is called with the numbers of finished rows and of all rows.

    Returns:
        Counts of the rows of this share.

    Raises:
        NotFittedError, InputError, OutputError: as :func:`score_to_file`.
    """
    plan = Plan(detector, identity, paths, form, out)
    with plan.open(resume=True, shared=True) as parts:
        _score(plan, parts, shard, engine, progress)
        return summary_of(parts.files(shard), judged=detector.calibration_ is not None)


def merge_scores(
    detector: Detector,
    identity: str,
    paths: Sequence[Path],
    form: Format,
    out: Path,
    *,
    others: Sequence[Path] = (),
) -> Summary:
    """Merge the parts of all shards into the file that :func:`score_to_file` would write.

    Args:
        detector: as for :func:`score_to_file`, as are all arguments but ``others``.
        identity: identity of the detector.
        paths: paths of the sources.
        form: conversion of the sources to model inputs.
        out: a .parquet, .csv or .jsonl file; an older one is replaced.
        others: folders of parts that shards wrote elsewhere; they are not removed.

    Raises:
        NotFittedError, OutputError: as :func:`score_to_file`.
        InputError: as :func:`score_to_file`, or when a part is missing.
    """
    plan = Plan(detector, identity, paths, form, out)
    with plan.open(resume=True, others=others) as parts:
        return _merge(plan, parts)


def _score(
    plan: Plan, parts: Parts, shard: Shard | None, engine: Engine, progress: Progress
) -> None:
    """Score the missing parts of all or of a shard."""
    missing = parts.missing(shard)
    total = sum(plan.sizes[number] for number in parts.numbers(shard))
    done = total - sum(plan.sizes[number] for number in missing)
    progress(done, total)

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, total)

    engine(plan, parts, missing, advance)
    plan.check_unchanged()


def _merge(plan: Plan, parts: Parts) -> Summary:
    """Merge all parts into the file, and remove them."""
    judged = plan.detector.calibration_ is not None
    summary = merged(plan.out, parts.files(), row_schema(plan.detector), judged=judged)
    parts.discard()
    return summary
