"""Timing in turn: ours and a rival's on the same work, and what the machine can do."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Timed", "copy_rate", "in_turn", "multiply_rate"]

Work = Callable[[], object]


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
        rounds = zip(self.seconds[rival], self.seconds[own], strict=False)
        found = [theirs / ours for theirs, ours in rounds]
        return statistics.median(found), min(found), max(found)


def in_turn(contestants: Mapping[str, Work], rounds: int) -> Timed:
    """Run everyone once to warm up, then everyone in each round."""
    for work in contestants.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return Timed(seconds)


def multiply_rate(dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Operations a second of the machine's matrix product; the best of some."""
    one, other = torch.rand(2, size, size, dtype=dtype)
    return 2 * size**3 / _fastest(lambda: one @ other)


def copy_rate(numbers: int = 2**24) -> float:
    """Bytes read and written a second by a copy that no cache holds; the best of some."""
    source = torch.rand(numbers)
    target = torch.empty_like(source)
    return 2 * 4 * numbers / _fastest(lambda: target.copy_(source))


def _fastest(work: Work, rounds: int = 7) -> float:
    return min(in_turn({"work": work}, rounds).seconds["work"])
