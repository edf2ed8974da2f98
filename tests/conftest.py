"""What the tests share: real data, the shipped classifiers, the committed results, one thread."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from leery.classifiers import pretrained
from leery.data import load

torch.set_num_threads(1)

# Without its limit of time per example, which a busy machine exceeds.
settings.register_profile("leery", deadline=None)
settings.load_profile("leery")

Batch = tuple[Tensor, Tensor]

RESULTS = Path(__file__).parent.parent / "docs" / "results"

# make test-browser installs what these need; without it naming them collects nothing, which fails.
collect_ignore = [] if find_spec("playwright") else ["browser"]


@pytest.fixture(scope="session")
def digits() -> Batch:
    """All 10,000 test digits and their labels."""
    return load("mnist", "test")


@pytest.fixture(scope="session")
def training_digits() -> Batch:
    """The first 6,000 training digits and their labels."""
    images, labels = load("mnist", "train")
    return images[:6000], labels[:6000]


@pytest.fixture
def digit_net() -> nn.Module:
    """The shipped digit classifier, a fresh copy for each test."""
    return pretrained("mnist").model


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the committed results of both datasets, with their reports.

    The command line makes them; what it printed stands beside them, in a file ``stdout``.
    """
    copy = tmp_path_factory.mktemp("reports") / "runs"
    shutil.copytree(RESULTS, copy, ignore=shutil.ignore_patterns("stages", "*.svg", "*.html"))
    command = [sys.executable, "-m", "leery", "report", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (copy.parent / "stdout").write_text(done.stdout)
    return copy
