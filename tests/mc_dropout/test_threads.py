"""Calls side by side: their order, their threads, and that torch's threads are as before."""

import contextlib
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leery.mc_dropout._plain_loop import PlainLoop
from leery.mc_dropout._threads import parallel_batches
from leery.models import isolated


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_calls_run_at_once_with_one_computing_thread_each_and_keep_their_order() -> None:
    met = threading.Barrier(2, timeout=60)

    def work(item: int) -> tuple[int, int]:
        met.wait()
        return item, torch.get_num_threads()

    with parallel_batches(2) as each:
        assert each(work, [5, 3]) == [(5, 1), (3, 1)]
        # Between calls and afterwards the caller has its own threads.
        assert torch.get_num_threads() == 3
        assert each(work, [1, 2]) == [(1, 1), (2, 1)]
    assert torch.get_num_threads() == 3


def test_what_the_caller_sets_between_calls_stays() -> None:
    with parallel_batches(2) as each:
        each(str, [5, 3])
        torch.set_num_threads(1)
        each(str, [5, 3])
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1


def test_alone_the_caller_computes_with_its_own_threads() -> None:
    with parallel_batches(1) as each:
        found = each(lambda item: (item, torch.get_num_threads(), threading.get_ident()), [5, 3])
    assert found == [(5, 3, threading.get_ident()), (3, 3, threading.get_ident())]


def test_an_error_comes_out_after_all_calls_have_ended() -> None:
    ended = []

    def work(item: int) -> None:
        if item == 0:
            raise ValueError(item)
        threading.Event().wait(0.2)
        ended.append(item)

    with parallel_batches(2) as each:
        with pytest.raises(ValueError, match="0"):
            each(work, [0, 1])
        assert ended == [1]
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("same", [False, True])
def test_passes_are_found_while_another_thread_runs_modules(*, same: bool) -> None:
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 8)).eval()
    other = model[2] if same else nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)))
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            other(torch.ones(1, 8))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(20):
            with isolated(model), torch.no_grad():
                (site,) = PlainLoop.find(model, (), torch.rand(2, 4)).sites
            assert site.name == "1"
    finally:
        stop.set()
        thread.join()


class Fallback(nn.Module):
    """Goes on where one of its modules fails."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong, self.drop, self.head = nn.Linear(5, 4), nn.Dropout(), nn.Linear(4, 3)

    def forward(self, rows: Tensor) -> Tensor:
        with contextlib.suppress(RuntimeError):
            self.wrong(rows)
        out: Tensor = self.head(self.drop(functional.dropout(rows, 0.5, self.training)))
        return out


def test_a_module_that_failed_is_not_taken_for_running() -> None:
    model = Fallback().eval()
    with isolated(model), torch.no_grad():
        sites = PlainLoop.find(model, (), torch.rand(2, 4)).sites
    assert [site.name for site in sites] == ["", "drop"]
