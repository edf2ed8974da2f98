"""Stages of tasks, each of which writes a file; a task whose file exists is not run again."""

import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from leery._files import write_atomically
from leery._progress import progress_bars
from leery.errors import InputError
from leery.tasks._parts import Shard
from leery.tasks._pool import Workers, default_workers, worker_pool

__all__ = [
    "Clock",
    "FileTask",
    "missing_tasks",
    "read_seconds",
    "run_record",
    "run_shard",
    "run_stages",
    "worker_count",
    "write_seconds",
]


@dataclass(frozen=True)
class FileTask:
    """A call of a function, done when its output file exists.

    Attributes:
        file: output file.
        function: module-level function.
        arguments: arguments of the function.
        cost: approximate CPU time in seconds, for the order of tasks and the progress bar.
        failure: file that the function writes instead if it fails in a way that is reported; a
            later run tries it again.
    """

    file: Path
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    cost: float
    failure: Path | None = None

    @property
    def done(self) -> bool:
        """True if the output file exists."""
        return self.file.exists()

    @property
    def tried(self) -> bool:
        """True if the output file exists, or the failure is reported."""
        return self.done or (self.failure is not None and self.failure.exists())


@dataclass
class Clock:
    """Wall time of each stage of this run, and the number of its tasks that were done before."""

    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, tasks: int = 1, reused: int = 0) -> Iterator[None]:
        """Time a block of code as a stage."""
        start = time.monotonic()
        yield
        seconds = round(time.monotonic() - start, 2)
        self.stages[name] = {"seconds": seconds, "tasks": tasks, "reused": reused}

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return round(sum(stage["seconds"] for stage in self.stages.values()), 2)


def run_record(clock: Clock, workers: int) -> dict[str, Any]:
    """The command, machine and times of this run, which differ between runs."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "processors": os.cpu_count(),
            "workers": workers,
        },
        "stages": clock.stages,
        "seconds": clock.seconds,
    }


def write_seconds(file: Path, seconds: Mapping[str, float]) -> None:
    """Write times of a task, which differ between runs, to a file next to its output."""
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    write_atomically(file.with_suffix(".seconds.json"), json.dumps(rounded))


def read_seconds(file: Path) -> dict[str, float]:
    """The times that :func:`write_seconds` wrote; empty if there are none."""
    try:
        found: dict[str, float] = json.loads(file.with_suffix(".seconds.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def worker_count(workers: int | None) -> int:
    """The number of processes to use, by default one per processor.

    Raises:
        InputError: when it is below 1.
    """
    count = default_workers() if workers is None else workers
    if count < 1:
        message = f"expected at least 1 worker, got {count}; pass a larger number"
        raise InputError(message)
    return count


def run_stages(
    stages: Mapping[str, Sequence[FileTask]], clock: Clock, *, workers: int, progress: bool
) -> None:
    """Run the missing tasks of each stage in worker processes, stage by stage.

    Args:
        stages: the tasks of each stage, in the order in which they are started.
        clock: records the time of each stage.
        workers: number of processes.
        progress: show bars on standard error, or lines if it is not a terminal.
    """
    with worker_pool(workers) as pool, progress_bars(enabled=progress) as bars:
        whole = _Whole(bars, sum(map(_cost, stages.values())))
        for name, tasks in stages.items():
            _run_stage(name, tasks, pool, whole, clock, said=progress)


def run_shard(
    stages: Mapping[str, Sequence[FileTask]],
    shard: Shard,
    clock: Clock,
    *,
    workers: int,
    progress: bool,
) -> str | None:
    """Run the missing tasks of a shard, up to the first stage that needs other shards' files.

    Args:
        stages: as for :func:`run_stages`.
        shard: whose tasks; of each stage, every ``shard.count``-th one.
        clock: as for :func:`run_stages`.
        workers: as for :func:`run_stages`.
        progress: as for :func:`run_stages`.

    Returns:
        How many tasks of which stage other shards must run before this one can go on, such as
        "attacks: 3 of 40"; None when this shard's tasks are done.
    """
    *_, last = stages
    for name, tasks in stages.items():
        own = tasks[shard.number - 1 :: shard.count]
        if own:
            run_stages({name: own}, clock, workers=workers, progress=progress)
        # No task needs those of the last stage.
        if name != last and (lacking := missing_tasks({name: tasks})):
            return lacking
    return None


def missing_tasks(stages: Mapping[str, Sequence[FileTask]]) -> str | None:
    """How many tasks of which stage are missing, such as "attacks: 3 of 40"; None if none."""
    for name, tasks in stages.items():
        if missing := sum(not task.tried for task in tasks):
            return f"{name}: {missing} of {len(tasks)}"
    return None


def _cost(tasks: Sequence[FileTask]) -> float:
    return sum(task.cost for task in tasks)


class _Whole:
    """Progress of all stages, in per cent of their cost, and the remaining time.

    Args:
        bars: progress bars to which this one is added.
        cost: total cost of all tasks.
    """

    def __init__(self, bars: Progress, cost: float) -> None:
        self.bars = bars
        self._start = time.monotonic()
        self._cost = cost
        self._done = self._worked = 0.0
        self._bar = bars.add_task(f"{'total, %':<12}", total=100)

    def advance(self, cost: float, *, worked: bool = True) -> None:
        """Add the cost of tasks that were run now (``worked``) or were already done."""
        self._done += cost
        self._worked += cost if worked else 0
        self.bars.update(self._bar, completed=100 * self._done / self._cost)

    def __str__(self) -> str:
        """The completed fraction and, once it can be estimated, the remaining minutes."""
        said = f"{self._done / self._cost:.0%} of the work done"
        if not self._worked:
            return said
        left = (time.monotonic() - self._start) * (self._cost - self._done) / self._worked
        return f"{said}, about {math.ceil(left / 60)} min left"


def _run_stage(
    name: str, tasks: Sequence[FileTask], pool: Workers, whole: _Whole, clock: Clock, *, said: bool
) -> None:
    """Run the missing tasks of a stage; print a line if bars are hidden."""
    missing = [task for task in tasks if not task.done]
    done = len(tasks) - len(missing)
    title = f"{name} ({done} done before)" if done else name
    bars = whole.bars
    bar = bars.add_task(f"{title:<12}", total=len(tasks), completed=done)
    whole.advance(_cost(tasks) - _cost(missing), worked=False)
    if bars.disable and said:
        bars.console.print(f"{title}: {len(missing)} of {len(tasks)} tasks to do; {whole}")
    with clock.stage(name, len(tasks), done):
        for place in pool.run([(task.function, task.arguments) for task in missing]):
            bars.advance(bar)
            whole.advance(missing[place].cost)
