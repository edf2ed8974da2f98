"""Worker processes that run tasks, stop at Ctrl-C and never outlive their parent."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from leery.errors import machine_error

__all__ = ["Task", "Workers", "default_workers", "single_threaded", "worker_pool"]

Task = tuple[Callable[..., object], tuple[Any, ...]]
"""A module-level function and its arguments."""


def default_workers() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Runs tasks in processes with one computing thread each.

    Args:
        executor: executor of the processes.
    """

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def run(self, tasks: Sequence[Task]) -> Iterator[int]:
        """Run all tasks in any order, and yield the index of each when it is done.

        Raises:
            LeeryError: when a task raises one, or a process dies.
        """
        # Processes start at submission and inherit the signal mask.
        with _interrupts_held_back():
            places: dict[Future[object], int] = {
                self._executor.submit(function, *arguments): place
                for place, (function, arguments) in enumerate(tasks)
            }
        try:
            for future in as_completed(places):
                future.result()
                yield places[future]
        except BrokenProcessPool as error:
            got = "one that died (out of memory, or killed)"
            raise machine_error(got, "all worker processes to finish") from error


@contextmanager
def worker_pool(count: int) -> Iterator[Workers]:
    """Provide worker processes for a block; they are always ended with it."""
    executor = ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=_settle_in
    )
    try:
        yield Workers(executor)
    except BaseException:
        # Not waited for: a task may take long, and unwritten work is redone. They are ended first,
        # so that the executor is marked as broken; shut down with pending work, it would write to a
        # pipe that it has closed, and print a traceback.
        for process in list((executor._processes or {}).values()):  # noqa: SLF001 - its own, and no other
            process.terminate()
            process.join()
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Compute with one thread in a block, so that its results do not depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Block SIGINT; processes started meanwhile inherit the block, and only the parent reacts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle_in() -> None:
    """Set up a worker that uses one computing thread and ends with its parent."""
    # Deprecations that other libraries' use of torch triggers are not the user's to mend.
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    threadpool_limits(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
