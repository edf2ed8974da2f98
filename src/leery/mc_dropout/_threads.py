"""Parallel calls, each in a thread that computes single-threaded.

Threads that share an operation synchronise after each one, which costs more than it gains for the
small operations of a pass. Threads with a batch each synchronise once.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

__all__ = ["ParallelMap", "parallel_batches"]

T = TypeVar("T")
R = TypeVar("R")


class ParallelMap(Protocol):
    """Like :func:`map`, for as many items as there are threads."""

    def __call__(self, work: Callable[[T], R], items: Sequence[T], /) -> list[R]:
        """Return the result of the work for each item, in order."""


@contextmanager
def parallel_batches(count: int) -> Iterator[ParallelMap]:
    """Provide ``count`` threads; with one, work runs in the caller's thread, unchanged.

    Torch's number of threads is restored when a call returns or raises. Another thread of the
    caller that first uses torch during a call computes single-threaded from then on.
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
    """Run the call single-threaded."""
    # Applies to this thread only, except in MKL, where it applies to the process.
    torch.set_num_threads(1)
    return work(item)
