"""Execution of a study: stages in worker processes, then tables, manifest and report."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from leery import data
from leery._files import make_folder, write_atomically
from leery.errors import InputError
from leery.study._config import STUDIES, StudyConfig
from leery.study._gather import gather
from leery.study._plan import plan
from leery.study._report import report
from leery.study._tables import MANIFEST, StudyResult, load_result, save_tables
from leery.study._workspace import Workspace
from leery.tasks import Clock, run_record, run_stages, worker_count

__all__ = ["reproduce", "reproduce_all"]

_REPORTED = ("leery", "torch", "numpy", "scipy", "scikit-learn", "pandas", "safetensors")


def reproduce(
    config: StudyConfig, out: Path, *, workers: int | None = None, progress: bool = False
) -> StudyResult:
    """Run the paper's study of one dataset and write its tables, figures and report.

    Every file is written completely or not at all. Finished stages are stored under ``stages``, by
    configuration and version of the program, so that an interrupted run can be resumed; that folder
    can be deleted at any time.

    Args:
        config: options of the study.
        out: output folder, created if missing.
        workers: number of processes, by default one per CPU core; it does not change the results.
        progress: show bars on standard error.

    Raises:
        InputError: when a setting is outside its range.
        DataError: when the data cannot be obtained.
        OutputError: when the folder cannot be written to.
    """
    if any((out / name / MANIFEST).exists() for name in STUDIES):
        message = (
            f"expected a folder for one study, got {out}, which holds several studies; pass "
            "another folder"
        )
        raise InputError(message)
    _run({out: config}, workers=workers, progress=progress)
    report(out)
    return load_result(out)


def reproduce_all(
    configs: Sequence[StudyConfig],
    out: Path,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> list[StudyResult]:
    """Run the studies of several datasets, each into a folder of its name, and a joint report.

    Args:
        configs: options of each study, one per dataset.
        out: parent folder of the studies' folders, created if missing.
        workers: number of processes, as for :func:`reproduce`.
        progress: show bars on standard error.

    Raises:
        InputError: when a setting is outside its range.
        DataError: when the data cannot be obtained.
        OutputError: when the folder cannot be written to.
    """
    if (out / MANIFEST).exists():
        message = (
            f"expected a folder for several studies, got {out}, which holds a single study; pass "
            "another folder"
        )
        raise InputError(message)
    folders = {out / config.dataset: config for config in configs}
    _run(folders, workers=workers, progress=progress)
    report(out)
    return [load_result(folder) for folder in folders]


def _run(studies: Mapping[Path, StudyConfig], *, workers: int | None, progress: bool) -> None:
    """Run all stages of all studies and write their tables and manifests."""
    count, clock = worker_count(workers), Clock()
    with clock.stage("data"):
        for config in studies.values():
            _check_data(config)
    workspaces = {
        folder: [Workspace(member, _stage_folder(member, folder)) for member in config.runs]
        for folder, config in studies.items()
    }
    stages = plan([workspace for group in workspaces.values() for workspace in group])
    run_stages(stages, clock, workers=count, progress=progress)
    with clock.stage("tables"):
        sums = {folder: save_tables(folder, gather(group)) for folder, group in workspaces.items()}
    for folder, config in studies.items():
        manifest = _manifest(config, workspaces[folder], count, clock)
        content = {**manifest, "tables": sums[folder]}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=2) + "\n")


def _check_data(config: StudyConfig) -> None:
    """Load the data before anything is written; raise if the limit exceeds the test set."""
    data.load(config.dataset, "train", config.data_dir)
    count = len(data.load(config.dataset, "test", config.data_dir)[1])
    if config.limit is not None and config.limit > count:
        message = (
            f"expected a limit of at most {count} images, the size of the test set, got "
            f"{config.limit}; leave it out to use all"
        )
        raise InputError(message)


def _stage_folder(config: StudyConfig, out: Path) -> Path:
    """The stage folder of this configuration; each configuration has its own."""
    identity = json.dumps(config.identity(), indent=2, sort_keys=True)
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = make_folder(make_folder(out) / "stages" / name)
    write_atomically(folder / "identity.json", identity)
    return folder


def _manifest(
    config: StudyConfig, workspaces: Sequence[Workspace], workers: int, clock: Clock
) -> dict[str, Any]:
    """Manifest: command, configuration, classifiers, versions, machine and times of a study."""
    return {
        **run_record(clock, workers),
        "again": _command(config),
        "config": {**asdict(config), "data_dir": str(config.data_dir or "")},
        "identities": [workspace.config.identity() for workspace in workspaces],
        "classifiers": [workspace.classifier().record for workspace in workspaces],
        "versions": {name: version(name) for name in _REPORTED},
    }


def _command(config: StudyConfig) -> str:
    """The command that reproduces the tables, without the output folder."""
    words = ["leery", "reproduce", config.dataset]
    for option, value in (
        ("--limit", config.limit),
        ("--seed", config.seed or None),
        ("--seeds", config.seeds),
        ("--data-dir", config.data_dir),
    ):
        if value is not None:
            words += [option, str(value)]
    if config.retrain:
        words.append("--retrain")
    return shlex.join(words)
