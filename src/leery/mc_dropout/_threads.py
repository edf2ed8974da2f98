"""Calls that run side by side, in threads of one computing thread each.

Several threads for one operation wait for each other after each; for the small ones of a pass that
costs more than they gain. Whole batches side by side wait once.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

__all__ = ["SideBySide", "side_by_side"]

T = TypeVar("T")
R = TypeVar("R")


class SideBySide(Protocol):
    """Like :func:`map`, for as many items as there are threads."""

    def __call__(self, work: Callable[[T], R], items: Sequence[T], /) -> list[R]:
        """What the work gives for each item, in their order."""


@contextmanager
def side_by_side(count: int) -> Iterator[SideBySide]:
    """So many threads for a while; with one the caller's own, which computes as it always does.

    The number of computing threads that torch was given is as before when a call returns or raises.
    A thread of the caller's that uses torch for the first time during a call has one from then on.
    """
    if count == 1:
        yield lambda work, items: [work(item) for item in items]
        return
    with ThreadPoolExecutor(count) as pool:

        def each(work: Callable[[T], R], items: Sequence[T], /) -> list[R]:
            threads = torch.get_num_threads()
            calls = [pool.submit(_alone, work, item) for item in items]
            try:
                wait(calls)
                return [call.result() for call in calls]
            finally:
                torch.set_num_threads(threads)

        yield each


def _alone(work: Callable[[T], R], item: T) -> R:
    """The call, with one computing thread."""
    # Of this thread only, but for MKL's, which is the whole process's.
    torch.set_num_threads(1)
    return work(item)
