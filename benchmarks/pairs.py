"""Timing in turn: ours and the rivals' on the same work, and what the machine can do."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Machine", "Operations", "Timed", "in_turn", "spread"]

Work = Callable[[], object]

TURN = 0.2
"""Seconds that a turn lasts at least: calls of milliseconds are then not measured just after
someone else had the caches."""


@dataclass(frozen=True)
class Timed:
    """The seconds of each contestant, one entry a round, all taken in turn.

    Attributes:
        seconds: by name.
    """

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Median seconds of one contestant."""
        return statistics.median(self.seconds[name])

    def ratio(self, rival: str, own: str = "leery") -> tuple[float, float, float]:
        """How many times as long the rival takes: median, least and most over the rounds."""
        rounds = zip(self.seconds[rival], self.seconds[own], strict=True)
        return spread([theirs / ours for theirs, ours in rounds])


def spread(found: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return statistics.median(found), min(found), max(found)


def in_turn(contestants: Mapping[str, Work], rounds: int, turn: float = TURN) -> Timed:
    """Everyone's seconds a call in each round, each round beginning with the next of them.

    A turn is one call, or as many as last that many seconds. Whoever needs a first call to warm
    up had it before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = deque(contestants)
    for _ in range(rounds):
        for name in order:
            seconds[name].append(seconds_a_call(contestants[name], turn))
        order.rotate(-1)
    return Timed(seconds)


def seconds_a_call(work: Work, turn: float) -> float:
    """The mean over calls one after another, the last of which ends when the turn is over."""
    start = time.perf_counter()
    calls, elapsed = 0, 0.0
    while not calls or elapsed < turn:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        calls, elapsed = calls + 1, time.perf_counter() - start
    return elapsed / calls


@dataclass(frozen=True)
class Machine:
    """What the machine does at best, with the threads that torch has, or on its GPU.

    Attributes:
        multiply32: operations a second of a float32 matrix product.
        multiply64: the same of float64.
        copy: bytes read and written a second by a copy that no cache holds.
    """

    multiply32: float
    multiply64: float
    copy: float

    @classmethod
    def measured(cls, device: str, numbers: int = 2**24) -> "Machine":
        """The best of nine tries each; half a second in all on a processor."""
        rates = []
        size = 1024 if device == "cpu" else 8192
        for dtype in (torch.float32, torch.float64):
            one, other = torch.rand(2, size, size, dtype=dtype, device=device)
            rates.append(2 * size**3 / fastest(lambda one=one, other=other: one @ other))
        source = torch.rand(numbers, device=device)
        target = torch.empty_like(source)
        return cls(*rates, 2 * 4 * numbers / fastest(lambda: target.copy_(source)))


@dataclass(frozen=True)
class Operations:
    """What must be computed and moved.

    Attributes:
        single: in float32.
        double: in float64.
        moved: bytes that are read or written at least once.
    """

    single: float
    double: float = 0.0
    moved: float = 0.0

    def seconds(self, machine: Machine) -> float:
        """At the rate of the machine's matrix products, or of its copies where that is longer."""
        computed = self.single / machine.multiply32 + self.double / machine.multiply64
        return max(computed, self.moved / machine.copy)


def fastest(work: Work, rounds: int = 9) -> float:
    work()
    return min(in_turn({"work": work}, rounds, turn=0).seconds["work"])
