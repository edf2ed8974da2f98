"""The study from start to end: stages in worker processes, then the files people read."""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from leery import __version__, data
from leery._files import make_folder, write_atomically
from leery._progress import progress_bars
from leery.errors import InputError
from leery.study import _stages as stages
from leery.study._config import METRIC_SETS, StudyConfig
from leery.study._figures import roc_figure
from leery.study._stages import Desk, Twins
from leery.study._tables import StudyResult, results_frame, uncertainty_frame
from leery.study._workers import Task, Workers, default_workers, worker_pool

__all__ = ["reproduce"]

_REPORTED = ("leery", "torch", "numpy", "scipy", "scikit-learn", "pandas", "safetensors")


@dataclass
class _Clock:
    """Wall time of each stage of this run, and how many of its tasks were found done."""

    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, tasks: int = 1, reused: int = 0) -> Iterator[None]:
        start = time.monotonic()
        yield
        seconds = round(time.monotonic() - start, 2)
        self.stages[name] = {"seconds": seconds, "tasks": tasks, "reused": reused}


def reproduce(
    config: StudyConfig, out: Path, *, workers: int | None = None, progress: bool = False
) -> StudyResult:
    """Run the paper's study of one dataset and write its files.

    Writes results.csv, uncertainty.csv, roc.png and manifest.json, each whole or not at all, and
    keeps finished stages under ``stages`` so that a run that was cut off goes on. Stages are kept
    by configuration and by version of the program; the folder can be deleted at any time.

    Args:
        config: what to study.
        out: the folder of the files; created.
        workers: the number of processes, by default one for each processor. It does not change
            the results.
        progress: show bars on standard error.

    Raises:
        InputError: when a setting is outside its range.
        DataError: when the data cannot be had.
        OutputError: when the folder cannot be written to.
    """
    count = default_workers() if workers is None else workers
    if count < 1:
        message = f"expected at least 1 worker, got {count}; pass a larger number"
        raise InputError(message)
    clock = _Clock()
    with clock.stage("data"):
        _check_data(config)
    desk = Desk(config, _stage_folder(config, out))
    with worker_pool(count) as pool, progress_bars(enabled=progress) as bars:
        for name, tasks in _plan(desk):
            _do(name, tasks, pool, bars, clock, said=progress)
    with clock.stage("report"):
        result = _write_tables(desk, out)
    _write_manifest(desk, out, count, clock)
    return result


def _check_data(config: StudyConfig) -> None:
    """Have the data at hand, before anything is written; refuse a limit beyond it."""
    data.load(config.dataset, "train", config.data_dir)
    count = len(data.load(config.dataset, "test", config.data_dir)[1])
    if config.limit is not None and config.limit > count:
        message = (
            f"expected a limit of at most {count} images, which the test set has, got "
            f"{config.limit}; leave it out to use all"
        )
        raise InputError(message)


def _stage_folder(config: StudyConfig, out: Path) -> Path:
    """The folder of the stages of this very study; another one has a folder of its own."""
    identity = json.dumps(config.identity(), indent=2, sort_keys=True)
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = make_folder(make_folder(out) / "stages" / name)
    write_atomically(folder / "identity.json", identity)
    return folder


def _plan(desk: Desk) -> Iterator[tuple[str, list[tuple[Path, Task]]]]:
    """The stages in order; each task with the file whose presence says that it is done."""
    yield "classifier", [(desk.weights.with_suffix(".json"), (stages.make_classifier, (desk,)))]
    yield "detector", [(desk.detector, (stages.fit_detector, (desk,)))]
    yield (
        "measure",
        [
            (desk.table(twins, start), (stages.measure, (desk, twins, start)))
            for twins in stages.all_twins(desk.config)
            for start in stages.shards(desk.config)
        ],
    )
    yield (
        "evaluate",
        [
            (desk.evaluation(condition), (stages.evaluate, (desk, condition)))
            for condition in desk.config.conditions
        ],
    )


def _do(
    name: str,
    tasks: Sequence[tuple[Path, Task]],
    pool: Workers,
    bars: Progress,
    clock: _Clock,
    *,
    said: bool,
) -> None:
    """One stage: the tasks whose file is missing; said in a line where there are no bars."""
    missing = [task for path, task in tasks if not path.exists()]
    done = len(tasks) - len(missing)
    title = f"{name} ({done} done before)" if done else name
    bar = bars.add_task(f"{title:<10}", total=len(tasks), completed=done)
    if bars.disable and said:
        bars.console.print(f"{title}: {len(missing)} of {len(tasks)} tasks to do")
    with clock.stage(name, len(tasks), done):
        for _ in pool.run(missing):
            bars.advance(bar)


def _write_tables(desk: Desk, out: Path) -> StudyResult:
    config = desk.config
    judged = {condition: stages.load_evaluation(desk, condition) for condition in config.conditions}
    rows = [row for content in judged.values() for row in content["rows"]]
    results = results_frame(config.dataset, rows)
    labels = stages.true_labels(config)
    clean = stages.load_table(desk, Twins())
    uncertainty = uncertainty_frame(config.dataset, clean, labels)
    areas = {
        condition: {
            row["metrics"]: row["auc"]
            for row in content["rows"]
            if (row["protocol"], row["positives"]) == ("held-out", "all")
        }
        for condition, content in judged.items()
    }
    curves = {condition: content["curves"] for condition, content in judged.items()}
    assert all(set(found) == set(METRIC_SETS) for found in areas.values())
    images = int(results["n_clean"].max())
    write_atomically(out / "results.csv", results.to_csv(index=False))
    write_atomically(out / "uncertainty.csv", uncertainty.to_csv(index=False))
    write_atomically(out / "roc.png", roc_figure(config, curves, areas, stages.FPR_GRID, images))
    accuracy = float(np.mean(clean.predicted == labels))
    return StudyResult(accuracy, results, uncertainty, out)


def _write_manifest(desk: Desk, out: Path, workers: int, clock: _Clock) -> None:
    record = desk.classifier().record
    manifest: dict[str, Any] = {
        "command": sys.argv,
        "config": {**asdict(desk.config), "data_dir": str(desk.config.data_dir or "")},
        "identity": desk.config.identity(),
        "classifier": record,
        "versions": {name: version(name) for name in _REPORTED},
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "processors": os.cpu_count(),
            "workers": workers,
        },
        "stages": clock.stages,
        "seconds": round(sum(stage["seconds"] for stage in clock.stages.values()), 2),
    }
    assert manifest["versions"]["leery"] == __version__
    write_atomically(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")
