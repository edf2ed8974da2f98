"""The study for real: its files, its restarts, the same results whatever the workers."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from leery.data import named
from leery.errors import InputError, LeeryError, OutputError, StudyFileError
from leery.study import METRIC_SETS, RESULT_COLUMNS, StudyConfig, reproduce, reproduce_all
from leery.study._desk import Desk
from leery.study._run import _stage_folder
from leery.study._stages import make_classifier
from leery.study._tables import TABLES
from leery.study._workers import worker_pool

LIMIT = 60
STOPPED = "\nleery: stopped; run the command again, and it goes on where it stopped\n"
COMMAND = [sys.executable, "-m", "leery", "reproduce", "mnist", "--limit", str(LIMIT)]


def run(*arguments: str, limit: int | None = None) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, *arguments]
    if limit is not None:
        command[command.index(str(LIMIT))] = str(limit)
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of a few digits with two workers."""
    out = tmp_path_factory.mktemp("study")
    done = run("--out", str(out), "--workers", "2")
    assert done.returncode == 0, done.stderr
    (out / "stdout").write_text(done.stdout)
    assert "measure: 9 of 9 tasks to do" in done.stderr
    assert "pictures: 7 of 7 tasks to do" in done.stderr
    return out


def test_the_results_hold_every_condition_set_protocol_and_choice_once(undisturbed: Path) -> None:
    results = pd.read_csv(undisturbed / "results.csv")
    assert tuple(results.columns) == RESULT_COLUMNS
    assert len(results) == 6 * len(METRIC_SETS) * 2 * 3
    key = ["attack", "epsilon", "metrics", "protocol", "positives"]
    assert not results.duplicated(key).any()
    assert set(results["epsilon"]) == {0.30, 0.12}
    judged = results[results["n_adversarial"] > 0]
    for column in ("auc", "tpr_at_1_fpr", "tpr_at_5_fpr", "average_precision", "attack_success"):
        assert judged[column].between(0, 1).all()
    assert (judged["auc_low"] <= judged["auc"]).all()
    assert (judged["auc"] <= judged["auc_high"]).all()
    assert results[results["n_adversarial"] == 0]["auc"].isna().all()


def test_counts_and_success_agree(undisturbed: Path) -> None:
    results = pd.read_csv(undisturbed / "results.csv")
    for _, rows in results.groupby(["attack", "epsilon", "metrics", "protocol"]):
        counts = rows.set_index("positives")["n_adversarial"]
        assert counts["all"] == counts["successful"] + counts["failed"]
        assert (rows["n_clean"] == counts["all"]).all()
        assert (rows["n_noisy"] == counts["all"]).all()
        assert rows["attack_success"].iloc[0] == pytest.approx(counts["successful"] / counts["all"])


def test_strong_attacks_succeed_and_are_detected(undisturbed: Path) -> None:
    results = pd.read_csv(undisturbed / "results.csv").set_index(
        ["attack", "epsilon", "metrics", "protocol", "positives"]
    )
    for attack in ("BIM", "PGD"):
        row = results.loc[(attack, 0.30, "all", "held-out", "all")]
        assert row["attack_success"] == 1.0
        assert row["auc"] > 0.95
        assert results.loc[(attack, 0.30, "kernel_density", "held-out", "all"), "auc"] > 0.95


def test_the_uncertainty_table_has_wrong_and_right_means(undisturbed: Path) -> None:
    table = pd.read_csv(undisturbed / "uncertainty.csv").set_index("metric")
    assert table["n_wrong"].iloc[0] + table["n_right"].iloc[0] == LIMIT
    assert 0 <= table.loc["variance", "right"] < 0.25


def test_the_manifest_tells_where_the_numbers_come_from(undisturbed: Path) -> None:
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert f"reproduce mnist --limit {LIMIT}" in manifest["command"]
    assert manifest["again"] == f"leery reproduce mnist --limit {LIMIT}"
    assert set(manifest["tables"]) == {table.file for table in TABLES.values()}
    (identity,), (classifier,) = manifest["identities"], manifest["classifiers"]
    assert identity["seed"] == 0
    assert len(identity["data_sha256"]) == 4
    assert len(classifier["weights_sha256"]) == 64
    assert manifest["versions"]["torch"].startswith("2.")
    assert set(manifest["stages"]) == {
        "data", "classifier", "detector", "measure", "evaluate", "success", "trace",
        "as printed", "pictures", "tables",
    }  # fmt: skip
    assert all(stage["seconds"] >= 0 for stage in manifest["stages"].values())


def test_the_terminal_shows_the_tables(undisturbed: Path) -> None:
    shown = (undisturbed / "stdout").read_text()
    results = pd.read_csv(undisturbed / "results.csv")
    whole = results[
        (results["attack"] == "BIM")
        & (results["epsilon"] == 0.12)
        & (results["metrics"] == "all")
        & (results["protocol"] == "held-out")
        & (results["positives"] == "all")
    ]["auc"].iloc[0]
    assert f"{whole:.3f}".removeprefix("0") in shown
    assert "accuracy on the 10,000 test images: 99.06%" in shown
    assert "The paper's claims" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "…" not in shown


def test_one_worker_gives_what_two_give(undisturbed: Path, tmp_path: Path) -> None:
    assert run("--out", str(tmp_path), "--workers", "1").returncode == 0
    written = [path for path in undisturbed.rglob("*.csv") if "stages" not in path.parts]
    assert len(written) == len(TABLES) + 2
    pictures = list((undisturbed / "figures").glob("*.svg"))
    assert len(pictures) == 12
    for path in (*written, *pictures):
        again = tmp_path / path.relative_to(undisturbed)
        assert again.read_bytes() == path.read_bytes(), path.name


def started(out: Path, ready: Callable[[], bool]) -> "subprocess.Popen[str]":
    """A run that is going on, interrupted in the middle of its work."""
    # Whoever runs the tests in the background of a shell has Ctrl-C ignored; users do not.
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *COMMAND, "--out", str(out), "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not ready():
        assert process.poll() is None, "the run ended before it could be disturbed"
        time.sleep(0.02)
    return process


def group_members(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(owner) == group and state != "Z":
            found.append(int(entry.name))
    return found


def gone(group: int) -> bool:
    """Whether a process group ends by itself; it is given a minute."""
    for _ in range(600):
        if not group_members(group):
            return True
        time.sleep(0.1)
    return False


def assert_stopped(process: "subprocess.Popen[str]") -> None:
    """The run says one sentence, exits with 130 and leaves no process behind."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith(STOPPED)
    assert "Traceback" not in errors
    assert gone(process.pid)


def test_killed_in_the_middle_it_resumes_to_the_same_results(
    undisturbed: Path, tmp_path: Path
) -> None:
    measured = tmp_path / "stages"
    process = started(tmp_path, lambda: len(list(measured.rglob("*.npz"))) >= 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert gone(process.pid), "workers outlived their parent"
    assert not (tmp_path / "results.csv").exists()
    finished = {path: path.stat().st_mtime_ns for path in measured.rglob("*.npz")}
    assert run("--out", str(tmp_path), "--workers", "2").returncode == 0
    assert (tmp_path / "results.csv").read_bytes() == (undisturbed / "results.csv").read_bytes()
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["stages"]["measure"]["reused"] == len(finished)
    assert manifest["stages"]["detector"]["reused"] == 1


def test_ctrl_c_ends_it_with_one_sentence_and_no_process_left(tmp_path: Path) -> None:
    process = started(tmp_path, lambda: bool(list(tmp_path.rglob("detector.leery"))))
    os.killpg(process.pid, signal.SIGINT)
    assert_stopped(process)
    assert not (tmp_path / "results.csv").exists()
    assert not list(tmp_path.rglob(".*.npz.*"))


def test_ctrl_c_while_the_workers_start_ends_it_just_so(tmp_path: Path) -> None:
    process = started(tmp_path, lambda: bool(workers_of(tmp_path)))
    time.sleep(0.6)  # the new process is importing torch
    os.killpg(process.pid, signal.SIGINT)
    assert_stopped(process)


def command_line(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def workers_of(out: Path) -> list[int]:
    """The worker processes of the run that writes to a folder."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    leaders = [pid for pid in pids if os.fsencode(out) in command_line(pid)]
    members = [pid for leader in leaders for pid in group_members(leader)]
    return [pid for pid in members if any(b"spawn_main" in word for word in command_line(pid))]


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
    with pytest.raises(OutputError, match="folder that can be written at .*file/stages"):
        reproduce(StudyConfig("mnist", limit=5), tmp_path / "file")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="folder for several studies, got .* the files of one"):
        reproduce_all([StudyConfig("mnist", limit=5)], tmp_path)
    (tmp_path / "above" / "mnist").mkdir(parents=True)
    (tmp_path / "above" / "mnist" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="folder for one study, got .* the folders of several"):
        reproduce(StudyConfig("mnist", limit=5), tmp_path / "above")


def test_another_configuration_does_not_reuse_the_stages(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    config = StudyConfig("mnist", limit=LIMIT)
    first = pd.read_csv(tmp_path / "results.csv")
    result = reproduce(StudyConfig("mnist", limit=9), tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert all(stage.get("reused", 0) == 0 for stage in manifest["stages"].values())
    assert result.results["n_clean"].iloc[0] < first["n_clean"].iloc[0]
    reproduce(config, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["stages"]["measure"]["reused"] == 9
    assert pd.read_csv(tmp_path / "results.csv").equals(first)
    (damaged,) = (
        path
        for path in tmp_path.glob("stages/*/measure/clean/000000.npz")
        if '"limit": 9' in (path.parents[2] / "identity.json").read_text()
    )
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(StudyFileError, match=r"stage file at .*clean.*delete it and run"):
        reproduce(StudyConfig("mnist", limit=9), tmp_path)
    damaged.unlink()
    (judged,) = damaged.parents[2].glob("evaluate/BIM-0.30.json")
    judged.write_text(judged.read_text()[:99])
    with pytest.raises(StudyFileError, match=r"stage file at .*BIM-0.30.json, got one that cannot"):
        reproduce(StudyConfig("mnist", limit=9), tmp_path)


def test_several_seeds_make_one_table_with_the_spread_of_each_cell(tmp_path: Path) -> None:
    config = StudyConfig("mnist", limit=10, seed=3, seeds=2)
    assert [(run.seed, run.retrain) for run in config.runs] == [(3, True), (4, True)]
    for run in config.runs:
        # A stage that is done is not done again: the shipped weights stand in for trainings.
        desk = Desk(run, _stage_folder(run, tmp_path))
        make_classifier(Desk(replace(run, retrain=False), desk.folder))
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
    with pytest.raises(InputError, match="got 'cifar'; the names are"):
        StudyConfig("cifar")
    with pytest.raises(InputError, match="at least 1 seed, got 0"):
        StudyConfig("mnist", seeds=0)
    with pytest.raises(InputError, match="at least 1 pass, got 0"):
        StudyConfig("mnist", passes=0)
    with pytest.raises(InputError, match="at most 10000 images, which the test set has, got 10001"):
        reproduce(StudyConfig("mnist", limit=10_001), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="at least 1 worker, got 0"):
        reproduce(StudyConfig("mnist", limit=5), tmp_path, workers=0)


def test_a_dead_worker_and_a_refusal_reach_the_parent() -> None:
    with pytest.raises(LeeryError, match="got one that died"), worker_pool(1) as pool:
        list(pool.run([(os._exit, (3,))]))
    with pytest.raises(InputError, match="got 'cifar'"), worker_pool(1) as pool:
        list(pool.run([(named, ("cifar",))]))
