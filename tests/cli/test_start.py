"""What a user meets first: a quick help, and Ctrl-C at any moment."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from leery import names
from leery.attacks import ADAPTED
from leery.baselines import BASELINES
from leery.cli._options import stoppable
from leery.metrics import make_metrics
from leery.metrics._registry import _MAKERS

ARGUMENTS = ["attack", "--model", "net:make", "--attack", "pgd:0.1", "--data", "a.npz"]

WITHOUT = """
import atexit, sys
atexit.register(lambda: print("imported:", sys.modules.keys() & {"torch", "sklearn", "pandas"}))
from leery.__main__ import main
main()
"""

MISSING = """
import sys
sys.modules["{package}"] = None
from leery.__main__ import main
main()
"""


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """Also where the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["fit", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["fit", "--no-such-option"], 2),
        (["calibrate", "guard.leery", "--fpr", "often"], 2),
        (["fly"], 2),
    ],
)
def test_help_and_wrong_arguments_need_no_torch(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stdout.endswith("imported: set()\n")


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("matplotlib", ["reproduce", "mnist"], "study"),
        ("jinja2", ["report", "runs"], "study"),
    ],
)
def test_a_missing_extra_is_one_sentence_with_the_line_that_installs_it(
    package: str, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MISSING.format(package=package), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    message = (
        f"leery: expected {package} to be installed, got no such package; run pip install "
        f"'.[{extra}]' in a clone of leery's repository\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    assert list(tmp_path.iterdir()) == []


def test_the_names_that_help_shows_are_those_that_there_are() -> None:
    assert tuple(_MAKERS) == names.METRICS
    assert [metric.name for metric in make_metrics(names.METRICS)] == list(names.METRICS)
    every = names.BASELINES + names.IMAGE_BASELINES + names.SUPERVISED_BASELINES
    assert tuple(BASELINES) == every
    assert tuple(ADAPTED) == names.ATTACKS_OF_LIBRARIES


@pytest.mark.parametrize("module", ["typer", "torch", "leery.attacks", "a classifier"])
def test_ctrl_c_while_something_is_imported_is_one_sentence(module: str, tmp_path: Path) -> None:
    code = "import sys, time\nprint('a classifier', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    (tmp_path / "net.py").write_text(code)
    (tmp_path / "a.npz").touch()
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "leery", *ARGUMENTS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            name = line.rpartition("|")[2].strip()
            if name == module or name.startswith(f"{module}."):
                process.send_signal(signal.SIGINT)
                break
        said = [line for line in process.stderr if not line.startswith("import time:")]
    assert said == ["leery: stopped; nothing was changed\n"]
    assert process.returncode == 130


@pytest.mark.parametrize("ignored", [True, False])
def test_ctrl_c_is_ignored_where_whoever_started_it_wants_that(
    ignored: bool, tmp_path: Path
) -> None:
    code = "import sys\nprint('a classifier', file=sys.stderr, flush=True)\nsys.stdin.readline()\n"
    (tmp_path / "net.py").write_text(code)
    (tmp_path / "a.npz").touch()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "leery", *ARGUMENTS],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stderr is not None
        assert process.stderr.readline() == "a classifier\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate("go on\n")
    if ignored:
        assert said.startswith("leery: expected a function or class 'make' in net")
        assert process.returncode == 1
    else:
        assert (said, process.returncode) == ("leery: stopped; nothing was changed\n", 130)


def test_a_command_that_is_called_as_a_function_leaves_ctrl_c_as_it_was() -> None:
    with stoppable("nothing was written"):
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(typer.Exit), stoppable("nothing was written"):
        raise KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
