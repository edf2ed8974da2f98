"""Worker processes that share out tasks, stop at Ctrl-C, and never outlive their parent."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch

from leery._extras import imported
from leery.errors import LeeryError

__all__ = ["Task", "Workers", "default_workers", "worker_pool"]

Task = tuple[Callable[..., object], tuple[Any, ...]]
"""A function of a module and its arguments."""


def default_workers() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Runs tasks in processes of one computing thread each.

    Args:
        executor: of the processes.
    """

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def run(self, tasks: Sequence[Task]) -> Iterator[int]:
        """Do all tasks in any order; yields the place of each that is done.

        Raises:
            LeeryError: what a task raised, or that a process died.
        """
        # Processes start at submission and inherit what is blocked meanwhile.
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
            message = (
                "expected the worker processes to live, got one that died (out of memory, or "
                "killed); run the command again, and it goes on where it stopped"
            )
            raise LeeryError(message) from error


@contextmanager
def worker_pool(count: int) -> Iterator[Workers]:
    """Processes for a while; they are gone afterwards, however it ends."""
    executor = ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=_settle_in
    )
    try:
        yield Workers(executor)
    except BaseException:
        # Not waited for: a task may take long, and what it has not written it does again. They go
        # first, so that the executor finds itself broken; asked to shut down with work left, it
        # would send them farewells through a pipe it closes, and print the traceback.
        for process in list((executor._processes or {}).values()):  # noqa: SLF001 - its own, and no other
            process.terminate()
            process.join()
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits for a moment; processes that start meanwhile never see it, their parent does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle_in() -> None:
    """A new worker: one computing thread, and it dies with its parent."""
    torch.set_num_threads(1)
    imported("threadpoolctl", "study").threadpool_limits(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
