"""A fault of the machine, at whatever call of the classifier, is an error."""

import importlib
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from leery import PAPER_METRICS, Detector
from leery.detector import _file_fit
from leery.errors import InputError, MachineError, raise_machine_fault
from leery.metrics import load_metrics
from leery.models import load_model, user_code
from leery.models._shortcut import Shortcut
from leery.scoring import _scoring
from leery.study import _workspace as study
from leery.tasks import Parts
from leery.training import _parts


class Faults:
    """Counts calls, and raises an error at one of them."""

    def __init__(self) -> None:
        self.calls, self.at = 0, -1
        self.error: Exception = RuntimeError("can't start new thread")

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error


FAULTS = Faults()


class Net(nn.Module):
    """A few numbers in, two classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first: nn.Module = nn.Linear(6, 8)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(8, 2)

    def forward(self, rows: Tensor) -> Tensor:
        FAULTS()
        out: Tensor = self.last(self.drop(self.first(rows).relu()))
        return out


class Convolution(Net):
    """A classifier of images, whose memory layout is tried too."""

    def __init__(self) -> None:
        super().__init__()
        self.first: nn.Module = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Flatten(), nn.Linear(48, 8))


class OwnDropout(nn.Module):
    """Dropout in a module of the user's own."""

    def forward(self, rows: Tensor) -> Tensor:
        return functional.dropout(rows, 0.3, self.training)


class Own(Net):
    """Dropout of torch and of the user."""

    def __init__(self) -> None:
        super().__init__()
        self.own = OwnDropout()

    def forward(self, rows: Tensor) -> Tensor:
        FAULTS()
        out: Tensor = self.last(self.own(self.drop(self.first(rows).relu())))
        return out


class Picky(Net):
    """A condition on values, so that no graph can be captured."""

    def forward(self, rows: Tensor) -> Tensor:
        if bool((rows > 100).any()):
            return super().forward(rows - 100)
        return super().forward(rows)


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval()


@pytest.mark.parametrize("kind", [Net, Own, Picky, Convolution])
def test_a_fault_at_any_call_is_raised(tmp_path: Path, kind: Callable[[], nn.Module]) -> None:
    rows = torch.rand(200, 6, generator=torch.Generator().manual_seed(0))
    if kind is Convolution:
        rows = rows.reshape(200, 1, 2, 3)
    fitted = Detector(made(kind), metrics=PAPER_METRICS, passes=3)
    fitted.fit(rows[:100], torch.arange(100) % 2).fit_combiner(rows[100:150]).save(tmp_path / "it")

    def scores(at: int) -> np.ndarray:
        FAULTS.calls, FAULTS.at = 0, at
        try:
            return Detector.load(tmp_path / "it", made(kind)).score(rows[150:])
        finally:
            FAULTS.at = -1

    expected, calls = scores(-1), FAULTS.calls
    assert calls > 3
    for at in range(1, calls + 1):
        with pytest.raises(MachineError):
            scores(at)
    assert np.array_equal(scores(-1), expected)


@pytest.mark.parametrize(
    "error",
    [
        OSError(24, "Too many open files"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        RuntimeError("unable to open shared memory object: Too many open files (24)"),
        ConnectionResetError("reset"),
        TimeoutError("timed out"),
    ],
)
def test_a_fault_in_a_trial_does_not_decide_for_the_slower_way(error: Exception) -> None:
    def failing(_model: nn.Module, _images: Tensor) -> Tensor:
        raise error

    trial = Shortcut(lambda model, images: model(images), failing)
    with pytest.raises(MachineError, match="run the command again, with --resume if it has that"):
        trial.gives_the_same(made(Net), torch.rand(2, 6))


@pytest.mark.parametrize(
    "error",
    [
        OSError("could not get source code"),
        RuntimeError("shapes do not fit"),
        RuntimeError("a relationship error"),
        RuntimeError("expected 4 dimensions (while checking arguments for cudnn_convolution)"),
        KeyError(1),
    ],
)
def test_other_errors_are_not_the_machine_s(error: Exception) -> None:
    raise_machine_fault(error)


CODE, MACHINE = "; correct its code", "; mend that, then run the command again, with --resume if it"


@pytest.mark.parametrize("at_import", [False, True])
@pytest.mark.parametrize(
    ("load", "what", "task"),
    [
        (load_model, "classifier", "return a classifier"),
        (lambda name: load_metrics([name]), "metric", "give a metric without arguments"),
    ],
)
@pytest.mark.parametrize(
    ("raised", "kind", "told"),
    [
        ("KeyError('lost')", InputError, "KeyError: 'lost'" + CODE),
        ("SystemExit(3)", InputError, "SystemExit: 3" + CODE),
        ("ModuleNotFoundError('get timm')", InputError, "ModuleNotFoundError: get timm" + CODE),
        ("FileNotFoundError(2, 'No', 'w.pt')", InputError, "[Errno 2] No: 'w.pt'" + CODE),
        ("IsADirectoryError(21, 'Is a', 'w')", InputError, "[Errno 21] Is a: 'w'" + CODE),
        ("MemoryError()", MachineError, "MemoryError" + MACHINE),
        ("OSError(24, 'Too many open files')", MachineError, "Too many open files" + MACHINE),
        ("URLError(OSError(-2, 'Name not known'))", MachineError, "Name not known>" + MACHINE),
    ],
)
def test_what_the_user_s_code_raises_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[str], object], what: str,
    task: str, raised: str, kind: type[Exception], told: str, *, at_import: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    raising = f"raise {raised}" if at_import else f"def it():\n    raise {raised}"
    Path("faulty.py").write_text(f"from urllib.error import URLError\n{raising}\n")
    importlib.invalidate_caches()
    expected = f"to import a {what} as faulty:it" if at_import else f"faulty:it to {task}"
    with pytest.raises(kind, match=f"expected {expected}, got .*{re.escape(told)}"):
        load("faulty:it")


def test_errors_of_leery_pass_and_a_missing_module_is_named() -> None:
    with pytest.raises(InputError, match="^mine$"), user_code("this"):
        raise InputError("mine")  # noqa: EM101 - not a message of ours
    with (
        pytest.raises(InputError, match="expected a Python module 'no_such', got none; install"),
        user_code("this"),
    ):
        importlib.import_module("no_such.module")


def test_too_little_memory_on_a_device_is_no_wrong_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(nn.Module, "to", failing)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(f"{__name__}:Net", device="cuda")


def part(count: Callable[[Path], int], suffix: str) -> Callable[[Path], object]:
    return lambda path: Parts(path.parent, "", [1], count, suffix).finished(0)


def test_a_part_that_cannot_be_opened_is_not_missing(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "", [1], lambda _: 1, ".it")
    assert parts.missing() == [0]
    (tmp_path / "00000000-.it").symlink_to("00000000-.it")
    with pytest.raises(MachineError, match="to read .*00000000-.it, got Too many levels of symb"):
        parts.missing()


def test_no_file_is_said_to_be_damaged_if_no_more_can_be_opened(tmp_path: Path) -> None:
    model, rows = made(Net), torch.rand(150, 6)
    fitted = Detector(model, metrics=PAPER_METRICS, passes=3)
    fitted.fit(rows[:100], torch.arange(100) % 2).fit_combiner(rows[100:])
    readers: dict[str, Callable[[Path], object]] = {
        "guard.leery": lambda path: Detector.load(path, model),
        "net.safetensors": lambda path: load_model(f"{__name__}:Net", path),
        "net.pt": lambda path: load_model(f"{__name__}:Net", path),
        "images.npz": study.read_arrays,
        "results.json": study.read_json,
        "00000000-.parquet": part(_scoring._rows_in, ".parquet"),
        "00000000-.learned": part(_file_fit._rows_in, ".learned"),
        "00000000-.trained": part(_parts._readable, ".trained"),
    }
    fitted.save(tmp_path / "guard.leery")
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    torch.save(model.state_dict(), tmp_path / "net.pt")
    study.write_arrays(tmp_path / "images.npz", images=np.zeros(3))
    study.write_json(tmp_path / "results.json", {})
    pq.write_table(pa.table({"a": [1]}), tmp_path / "00000000-.parquet")
    for name in ("learned", "trained"):
        save_file({_file_fit._ROWS: torch.tensor(1)}, tmp_path / f"00000000-.{name}")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for name, reader in readers.items():
        reader(tmp_path / name)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        try:
            with pytest.raises(MachineError, match=f"to read .*{name}, got Too many open files;"):
                reader(tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
