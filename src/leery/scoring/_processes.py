"""Scoring in several processes of one machine."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from torch import nn

from leery.detector import Detector
from leery.errors import InputError
from leery.inputs import Format
from leery.metrics import load_metrics
from leery.scoring._plan import Advance, Plan
from leery.tasks import Parts, worker_pool

__all__ = ["Processes", "SavedDetector"]

_SHARES = 8
"""Number of stretches of parts for each process; more finish more evenly, fewer seek less."""


@dataclass(frozen=True)
class SavedDetector:
    """A detector's file and what else it takes to load it, for other processes.

    Attributes:
        file: the detector's file.
        model: a picklable function that returns the classifier.
        metrics: names of the user's own metrics, as "module:name".
    """

    file: Path
    model: Callable[[], nn.Module]
    metrics: tuple[str, ...] = ()

    @cached_property
    def identity(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def load(self) -> Detector:
        """Load the detector.

        Raises:
            LeeryError: when the file, the classifier or a metric cannot be loaded.
        """
        return Detector.load(self.file, self.model(), metrics=load_metrics(self.metrics))


@dataclass(frozen=True)
class Processes:
    """Scores parts in processes of this machine, with one thread each.

    Attributes:
        saved: the detector, as each process loads it.
        count: maximum number of processes.
    """

    saved: SavedDetector
    count: int

    def __call__(self, plan: Plan, parts: Parts, numbers: Sequence[int], advance: Advance) -> None:
        """Score the inputs of parts, as :meth:`Plan.score` does."""
        count = min(self.count, len(numbers))
        if count < 2:  # noqa: PLR2004 - this process alone
            plan.score(parts, numbers, advance)
            return
        shares = [
            share.tolist() for share in np.array_split(numbers, min(count * _SHARES, len(numbers)))
        ]
        known = self.saved, plan.identity, tuple(plan.paths), plan.form, plan.out, parts
        with worker_pool(count) as pool:
            for place in pool.run([(_score, (*known, share)) for share in shares]):
                advance(sum(plan.sizes[number] for number in shares[place]))


def _score(
    saved: SavedDetector,
    identity: str,
    paths: Sequence[Path],
    form: Format,
    out: Path,
    parts: Parts,
    numbers: Sequence[int],
) -> None:
    """Score the inputs of parts in a worker process.

    Raises:
        InputError: when this process would score something else than the one that started it.
    """
    plan = _plan_of(saved, paths, form, out)
    if plan.identity != identity:
        message = (
            f"expected the same detector, inputs and code in every process, got others for {out}; "
            "run the command again"
        )
        raise InputError(message)
    plan.score(parts, numbers, lambda _rows: None)


@cache
def _plan_of(saved: SavedDetector, paths: Sequence[Path], form: Format, out: Path) -> Plan:
    """The plan, made once in each process."""
    return Plan(saved.load(), saved.identity, paths, form, out)
