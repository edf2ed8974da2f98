"""Runs of the study from Python: what is left alone, what is refused, seeds, workers."""

import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leery.data import named
from leery.errors import InputError, LeeryError, OutputError
from leery.study import StudyConfig, reproduce, reproduce_all
from leery.study._run import _stage_folder
from leery.study._stages import make_classifier
from leery.study._workspace import Workspace
from leery.tasks import worker_pool


def test_an_interrupted_pool_leaves_no_process_and_no_thread() -> None:
    """A thread left behind races with Python's own at the exit, which prints a traceback."""
    threads, processes = set(threading.enumerate()), multiprocessing.active_children()
    own = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    with pytest.raises(KeyboardInterrupt), worker_pool(2) as pool:  # noqa: PT012 - it is running
        own.start()
        assert next(pool.run([(time.sleep, (0,))] + [(time.sleep, (600,))] * 5)) == 0
        raise KeyboardInterrupt
    assert set(threading.enumerate()) == threads
    assert multiprocessing.active_children() == [*processes, own]
    assert own.is_alive(), "the caller's own process"
    own.terminate()
    own.join()


@pytest.mark.slow
def test_the_users_own_files_and_processes_are_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "stages" / "acceptance" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    own = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    own.start()
    result = reproduce(StudyConfig("fashion-mnist", limit=12), tmp_path, workers=2)
    assert notes.read_text() == "mine"
    assert own.is_alive()
    own.terminate()
    own.join()
    # Fashion articles run through the same code.
    assert set(result.results["epsilon"]) == {0.03, 0.12}
    assert set(result.results["dataset"]) == {"fashion-mnist"}
    assert result.results["n_clean"].max() <= 12
    assert np.isfinite(result.tables["uncertainty"]["right"]).all()
    assert "Ankle boot" in (tmp_path / "report.html").read_text()


def test_folders_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "stages").write_text("I am a file")
    with pytest.raises(OutputError, match=r"file/stages/\w+ to be a writable folder, got"):
        reproduce(StudyConfig("mnist", limit=5), tmp_path / "file")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(
        InputError, match="folder for several studies, got .*, which holds a single study"
    ):
        reproduce_all([StudyConfig("mnist", limit=5)], tmp_path)
    (tmp_path / "above" / "mnist").mkdir(parents=True)
    (tmp_path / "above" / "mnist" / "manifest.json").write_text("{}")
    with pytest.raises(
        InputError, match="folder for one study, got .*, which holds several studies"
    ):
        reproduce(StudyConfig("mnist", limit=5), tmp_path / "above")


@pytest.mark.slow
def test_several_seeds_make_one_table_with_the_spread_of_each_cell(tmp_path: Path) -> None:
    config = StudyConfig("mnist", limit=10, seed=3, seeds=2)
    assert [(run.seed, run.retrain) for run in config.runs] == [(3, True), (4, True)]
    for run in config.runs:
        # A stage that is done is not done again: the shipped weights stand in for trainings.
        workspace = Workspace(run, _stage_folder(run, tmp_path))
        make_classifier(Workspace(replace(run, retrain=False), workspace.folder))
    result = reproduce(config, tmp_path, workers=2)
    assert result.seeds == (3, 4)
    assert result.manifest["stages"]["classifier"]["reused"] == 2
    assert result.manifest["again"] == "leery reproduce mnist --limit 10 --seed 3 --seeds 2"
    for name in ("results", "comparisons", "uncertainty", "turning-points", "attack-success"):
        assert set(result.tables[name]["seed"]) == {3, 4}
    keys = ["attack", "epsilon", "metrics", "protocol", "positives"]
    assert (result.results.groupby(keys).size() == 2).all()
    # Other masks, random starts, noise and folds: the repetitions differ.
    areas = result.results.pivot_table(index=keys, columns="seed", values="auc")
    assert (areas[3] != areas[4]).any()
    text = (tmp_path / "report.html").read_text()
    assert "over 2 classifiers, trained at seeds 3, 4" in text
    measured = result.results.dropna(subset="auc").groupby(keys)["auc"]
    assert (measured.size() == 2).sum() > 100
    for _, both in measured:
        if len(both) == 2:
            assert f">{both.mean():.3f} ± {both.std():.3f}</td>" in text


def test_impossible_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="limit of at least 5 images, one for each fold, got 4"):
        StudyConfig("mnist", limit=4)
    with pytest.raises(InputError, match="seed of at least 0, got -1"):
        StudyConfig("mnist", seed=-1)
    with pytest.raises(
        InputError, match="one of mnist, fashion-mnist, the datasets of the paper, got 'cifar'"
    ):
        StudyConfig("cifar")
    with pytest.raises(InputError, match="at least 1 seed, got 0"):
        StudyConfig("mnist", seeds=0)
    with pytest.raises(InputError, match="at least 1 pass, got 0"):
        StudyConfig("mnist", passes=0)
    with pytest.raises(
        InputError, match="at most 10000 images, the size of the test set, got 10001"
    ):
        reproduce(StudyConfig("mnist", limit=10_001), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="at least 1 worker, got 0"):
        reproduce(StudyConfig("mnist", limit=5), tmp_path, workers=0)


def test_a_dead_worker_and_a_refusal_reach_the_parent() -> None:
    with pytest.raises(LeeryError, match="got one that died"), worker_pool(1) as pool:
        list(pool.run([(os._exit, (3,))]))
    with pytest.raises(InputError, match="got 'cifar'"), worker_pool(1) as pool:
        list(pool.run([(named, ("cifar",))]))
