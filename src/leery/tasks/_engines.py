"""Who computes the parts of a computation: this process, or several."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from leery.errors import InputError
from leery.tasks._parts import Parts, Shard
from leery.tasks._pool import worker_pool

__all__ = [
    "Advance",
    "Engine",
    "Processes",
    "Progress",
    "Work",
    "compute_missing",
    "compute_part",
    "no_progress",
]

_PIECES = 8
"""Number of pieces of work for each process; more finish more evenly, fewer read less."""

Advance = Callable[[int], object]
"""Function that is called with the number of newly finished rows."""


Progress = Callable[[int, int], object]
"""Function of the number of finished rows and the total number."""


def no_progress(_done: int, _total: int) -> None:
    """Show nothing."""


class Work(Protocol):
    """A computation that is cut into parts by its inputs alone."""

    @property
    def identity(self) -> str:
        """The SHA-256 of everything that the parts depend on."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What the parts depend on by name, such as hashes; all machines must have the same."""

    @property
    def sizes(self) -> Sequence[int]:
        """The number of rows of each part."""

    def compute(self, parts: Parts, numbers: Sequence[int], advance: Advance) -> None:
        """Compute parts, and write each once it is complete.

        Args:
            parts: where they are written.
            numbers: numbers of the parts, in ascending order.
            advance: function that is called with the number of newly finished rows.
        """


Engine = Callable[[Work, Parts, Sequence[int], Advance], None]
"""Computes the parts whose numbers are given, such as :meth:`Work.compute` does in this process."""


def compute_missing(
    work: Work, parts: Parts, shard: Shard | None, engine: Engine | None, progress: Progress
) -> None:
    """Compute the parts that are not finished.

    Args:
        work: the computation.
        parts: where the parts are.
        shard: whose parts; None for all.
        engine: computes them; None for this process, with one thread.
        progress: function that is called with the number of finished rows and the total number.
    """
    missing = parts.missing(shard)
    total = sum(work.sizes[number] for number in parts.numbers(shard))
    done = total - sum(work.sizes[number] for number in missing)
    progress(done, total)

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, total)

    if engine is None:
        work.compute(parts, missing, advance)
    else:
        engine(work, parts, missing, advance)


@dataclass(frozen=True)
class Processes:
    """Computes parts in processes of this machine, with one thread each.

    Attributes:
        make: picklable function that makes the same work in another process.
        count: maximum number of processes.
    """

    make: Callable[[], Work]
    count: int

    def __call__(self, work: Work, parts: Parts, numbers: Sequence[int], advance: Advance) -> None:
        """Compute parts, as :meth:`Work.compute` does."""
        count = min(self.count, len(numbers))
        if count < 2:  # noqa: PLR2004 - this process alone
            work.compute(parts, numbers, advance)
            return
        pieces = [
            piece.tolist() for piece in np.array_split(numbers, min(count * _PIECES, len(numbers)))
        ]
        with worker_pool(count) as pool:
            tasks = [(compute_part, (self.make, parts, piece)) for piece in pieces]
            for place in pool.run(tasks):
                advance(sum(work.sizes[number] for number in pieces[place]))


def compute_part(make: Callable[[], Work], parts: Parts, numbers: Sequence[int]) -> None:
    """Compute parts in a process that another one has started.

    Args:
        make: function that makes the work; called once in each process.
        parts: where the parts are written.
        numbers: numbers of the parts, in ascending order.

    Raises:
        InputError: when this process would compute something else than the one that started it.
    """
    work = _MADE.get(parts.identity)
    if work is None:
        work = _MADE.setdefault(parts.identity, make())
    if work.identity != parts.identity:
        message = (
            f"expected the same files, code and libraries in every process, got a difference on "
            f"{platform.node()} for {parts.folder}; make them equal and run again"
        )
        raise InputError(message)
    work.compute(parts, numbers, lambda _rows: None)


_MADE: dict[str, Work] = {}
"""The works that this process has made, by the identity of their parts."""
