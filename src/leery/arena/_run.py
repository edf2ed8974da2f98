"""Execution of an arena: parts in worker processes, then tables and the page."""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from leery import data
from leery._extras import imported
from leery._files import make_folder, write_atomically
from leery.arena._attack_stage import run_attack
from leery.arena._classifier_stage import make_classifier, predict_all
from leery.arena._config import ArenaConfig
from leery.arena._detectors import Entry, entries
from leery.arena._gather import gather
from leery.arena._page import write_page
from leery.arena._score_stage import score_detector
from leery.arena._workspace import ATTACK_LIBRARIES, CLEAN_IMAGES, Workspace, error_file
from leery.errors import InputError
from leery.tasks import (
    Clock,
    FileTask,
    Shard,
    missing_tasks,
    run_record,
    run_shard,
    run_stages,
    worker_count,
)

__all__ = ["MANIFEST", "RUN", "run_arena", "run_arena_shard"]

MANIFEST, RUN = "manifest.json", "run.json"
"""Names of two files: what was computed; the times and the machine of the last run."""

_REPORTED = ("leery", "torch", "numpy", "scipy", "scikit-learn", *ATTACK_LIBRARIES)


def run_arena(
    config: ArenaConfig,
    out: Path,
    *,
    workers: int | None = None,
    progress: bool = False,
    merge: bool = False,
) -> dict[str, pd.DataFrame]:
    """Run every attack and every detector of an arena, and write its tables.

    Every file is written completely or not at all. Finished parts are stored in the folder
    ``parts``, each under a hash of everything that it depends on, so that an interrupted run can be
    resumed; that folder can be deleted at any time.

    Args:
        config: options of the arena.
        out: output folder, created if missing.
        workers: number of processes, by default one per CPU core; it does not change the results.
        progress: show bars on standard error.
        merge: True to raise if parts are missing, such as those of a shard, instead of making them.

    Returns:
        The tables by name: leaderboard, cells, false-alarms, attacks and times.

    Raises:
        InputError: when a setting is outside its range, a detector cannot be found, or parts to
            merge are missing.
        DataError: when the data cannot be obtained.
        OutputError: when the folder cannot be written to.
    """
    if merge and not (out / "parts").is_dir():
        message = f"expected the parts of shards in {out}, got none; pass the --out of the shards"
        raise InputError(message)
    run = _Run(config, out, workers)
    if merge and (lacking := missing_tasks(run.stages)):
        message = (
            f"expected all parts in {run.folder}, got too few (missing: {lacking}); run the shards "
            "again"
        )
        raise InputError(message)
    if not merge:
        run_stages(run.stages, run.clock, workers=run.workers, progress=progress)
    with run.clock.stage("tables"):
        tables = gather(run.workspaces, run.known)
        sums = {name: _write(out, name, table) for name, table in tables.items()}
    del sums["times"]
    manifest = _write_manifests(config, out, run.workspaces, sums, run.workers, run.clock)
    write_page(out, tables, manifest)
    return tables


def run_arena_shard(
    config: ArenaConfig,
    out: Path,
    shard: Shard,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> str | None:
    """Make one shard's parts of an arena; :func:`run_arena` writes the tables.

    Shards use the same output folder and may run at the same time. A stage needs all parts of the
    one before: a shard stops where parts of other shards are missing, and must then be run again.

    Args:
        config: options of the arena.
        out: output folder, created if missing.
        shard: which shard.
        workers: as for :func:`run_arena`.
        progress: as for :func:`run_arena`.

    Returns:
        What other shards must make before this one can go on, such as "attacks: 3 of 40"; None
        when this shard's parts are made.

    Raises:
        InputError, DataError, OutputError: as :func:`run_arena`.
    """
    run = _Run(config, out, workers)
    return run_shard(run.stages, shard, run.clock, workers=run.workers, progress=progress)


class _Run:
    """The data, detectors and tasks of an arena.

    Args:
        config: options of the arena.
        out: output folder.
        workers: number of processes; None for one per CPU core.
    """

    def __init__(self, config: ArenaConfig, out: Path, workers: int | None) -> None:
        for library in ("foolbox", "art"):
            imported(library, "attacks")
        self.workers, self.clock = worker_count(workers), Clock()
        self.known = entries(config.dataset, config.detectors, config.only)
        with self.clock.stage("data"):
            for split in ("train", "test"):
                data.load(config.dataset, split, config.data_dir)
        self.folder = make_folder(make_folder(out) / "parts")
        self.workspaces = [Workspace(config, self.folder, seed) for seed in range(config.seeds)]
        self.stages = {
            "classifier": [task for one in self.workspaces for task in _classifier(one)],
            "attacks": self._longest_first(_attacks),
            "detectors": self._longest_first(_detectors),
        }

    def _longest_first(
        self, tasks_of: Callable[[Workspace, Sequence[Entry]], Iterator[FileTask]]
    ) -> list[FileTask]:
        tasks = [task for one in self.workspaces for task in tasks_of(one, self.known)]
        return sorted(tasks, key=lambda task: -task.cost)


def _classifier(workspace: Workspace) -> Iterator[FileTask]:
    cost = 1 if workspace.classifier_seed == 0 else 300 * _slowness(workspace)
    yield FileTask(workspace.classifier_file, make_classifier, (workspace,), cost)


def _attacks(workspace: Workspace, known: Sequence[Entry]) -> Iterator[FileTask]:
    config = workspace.config
    yield FileTask(workspace.predictions_file, predict_all, (workspace,), 10)
    training = config.training_attacks if any(entry.supervised for entry in known) else ()
    for role, cells in (("judging", config.cells), ("training", training)):
        for cell in cells:
            images = config.count(cell) if role == "judging" else CLEAN_IMAGES
            cost = config.cells[cell].seconds * images * _slowness(workspace)
            paths = workspace.attack_files(cell, role)
            for part, path in enumerate(paths):
                yield FileTask(path, run_attack, (workspace, cell, role, part), cost / len(paths))


def _detectors(workspace: Workspace, known: Sequence[Entry]) -> Iterator[FileTask]:
    for entry in known:
        cost, file = 100 * _slowness(workspace), workspace.scores_file(entry)
        yield FileTask(
            file, score_detector, (workspace, entry, file), cost, failure=error_file(file)
        )


def _slowness(workspace: Workspace) -> float:
    """Time of a forward pass of the dataset's network, relative to DigitNet's."""
    return {"mnist": 1.0, "fashion-mnist": 3.0}.get(workspace.config.dataset, 20.0)


def _write(out: Path, name: str, table: pd.DataFrame) -> str:
    """Write a table and return the SHA-256 of the file."""
    content = str(table.to_csv(index=False, float_format="%.6g")).encode()
    write_atomically(out / f"{name}.csv", content)
    return hashlib.sha256(content).hexdigest()


def _write_manifests(
    config: ArenaConfig,
    out: Path,
    workspaces: Sequence[Workspace],
    sums: dict[str, str],
    workers: int,
    clock: Clock,
) -> dict[str, Any]:
    """Write the manifest and, in a file of its own, what differs between runs; return the first."""
    content: dict[str, Any] = {
        "again": _command(config),
        "config": {
            **asdict(config),
            **{name: str(getattr(config, name) or "") for name in ("classifier", "data_dir")},
        },
        "data_sha256": data.data_sums(config.dataset, config.data_dir),
        "classifiers": [workspace.classifier().record for workspace in workspaces],
        "versions": {name: version(name) for name in _REPORTED},
        "tables": sums,
    }
    write_atomically(out / MANIFEST, json.dumps(content, indent=2) + "\n")
    write_atomically(out / RUN, json.dumps(run_record(clock, workers), indent=2) + "\n")
    return content


def _command(config: ArenaConfig) -> str:
    """The command that makes the tables again, without the output folder."""
    words = ["leery", "arena", config.dataset, "--limit", str(config.limit)]
    for option, names in (("--only", config.only or ()), ("--detector", config.detectors)):
        for name in names:
            words += [option, name]
    for option, value in (
        ("--seed", config.seed or None),
        ("--seeds", config.seeds if config.seeds > 1 else None),
        ("--classifier", config.classifier),
        ("--data-dir", config.data_dir),
    ):
        if value is not None:
            words += [option, str(value)]
    return shlex.join(words)
