"""Metrics of the plain forward pass against scipy, closed forms and laws."""

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor

from leery.combiners import ConformalCombiner, Facts
from leery.errors import InputError
from leery.metrics import ForwardPass, energy, log_margin, margin, max_softmax
from leery.metrics.forward_pass import FORWARD


def logits(seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(50, 7, generator=torch.Generator().manual_seed(seed))


def test_they_are_what_scipy_computes() -> None:
    rows = logits()
    wide = rows.double().numpy()
    assert np.allclose(max_softmax(rows), scipy.special.softmax(wide, axis=1).max(1))
    assert np.allclose(energy(rows), -scipy.special.logsumexp(wide, axis=1))
    ordered = np.sort(wide, axis=1)
    gap = ordered[:, -1] - ordered[:, -2]
    assert np.allclose(margin(rows), gap)
    assert np.allclose(log_margin(rows), np.log(gap))


def test_a_shift_of_all_logits_moves_the_energy_alone() -> None:
    rows = logits()
    assert torch.allclose(max_softmax(rows + 5), max_softmax(rows))
    assert torch.allclose(margin(rows + 5), margin(rows), atol=1e-5)
    assert torch.allclose(energy(rows + 5), energy(rows) - 5, atol=1e-5)


def test_the_limits() -> None:
    equal = torch.zeros(2, 4)
    assert max_softmax(equal).tolist() == [0.25, 0.25]
    assert margin(equal).tolist() == [0, 0]
    assert log_margin(equal).tolist() == pytest.approx([np.log(2.0**-23)] * 2)
    assert log_margin(100 + equal.bfloat16()).tolist() == pytest.approx([np.log(100 * 2.0**-7)] * 2)
    assert bool(log_margin(torch.tensor([[1.0, -torch.inf]])).isfinite().all())
    huge = torch.tensor([[1e4, 0.0], [-1e4, 1e4]])
    assert max_softmax(huge).tolist() == [1, 1]
    assert bool(energy(huge).isfinite().all())
    for function in (max_softmax, margin, log_margin, energy):
        assert function(equal.half()).dtype == torch.float64
        assert function(torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize("name", ["max_softmax", "margin", "log_margin", "energy"])
def test_a_doubtful_image_is_more_suspicious(name: str) -> None:
    metric = ForwardPass(name)
    sure, doubtful = (torch.tensor([[9.0, 1.0]]), torch.tensor([[1.2, 1.0]]))
    function = FORWARD[name]
    sign = 1 if metric.direction == "larger" else -1
    assert sign * float(function(doubtful)) > sign * float(function(sure))


def test_another_function_is_refused() -> None:
    with pytest.raises(
        InputError, match="of the functions max_softmax, margin, .*, energy, got 'entropy'"
    ):
        ForwardPass("entropy")


def test_an_exponential_tail_in_the_log_margin_knows_images_on_the_boundary() -> None:
    """Of margins with a density at 0, the share below m is in proportion to m."""
    generator = np.random.default_rng(0)
    held = generator.uniform(0, 10, size=(4000, 1))
    boundary = np.array([[1e-4]])

    def evidence(name: str, values: np.ndarray, value: np.ndarray) -> float:
        facts = Facts.of(ForwardPass(name))
        combiner = ConformalCombiner([facts]).fit(values, np.zeros(len(values), dtype=np.int64))
        found = combiner(torch.from_numpy(value), torch.zeros(1, dtype=torch.int64))
        return float(found[0])

    true = -np.log(1e-4 / 10)
    assert evidence("log_margin", np.log(held), np.log(boundary)) == pytest.approx(true, rel=0.1)
    assert evidence("margin", held, boundary) < 0.6 * true
