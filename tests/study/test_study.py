"""The study for real: its files, its restarts, the same results whatever the workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from leery.errors import StudyFileError
from leery.study import METRIC_SETS, RESULT_COLUMNS, StudyConfig, reproduce
from leery.study._tables import TABLES

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
