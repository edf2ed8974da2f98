"""Statistics of the image against scipy, closed forms and limits."""

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor

from leery.errors import InputError
from leery.metrics import InputStatistic, median_residual, residual_kurtosis
from leery.observation import Observation

Batch = tuple[Tensor, Tensor]


def test_residuals_are_those_of_scipy_s_median_filter(digits: Batch) -> None:
    images = digits[0][:10]
    wide = images.double().numpy()[:, 0]
    residual = np.stack([row - scipy.ndimage.median_filter(row, 3, mode="mirror") for row in wide])
    assert np.allclose(median_residual(images), np.abs(residual).mean((1, 2)))
    flat = residual.reshape(10, -1)
    assert np.allclose(residual_kurtosis(images), scipy.stats.kurtosis(flat, axis=1, fisher=False))


def test_closed_forms() -> None:
    flat = torch.full((1, 2, 6, 6), 0.3)
    assert median_residual(flat).tolist() == [0]
    assert residual_kurtosis(flat).tolist() == [3]
    dot = torch.zeros(1, 1, 10, 10)
    dot[0, 0, 5, 5] = 1
    assert median_residual(dot).tolist() == [pytest.approx(1 / 100)]
    # One of n values differs: the kurtosis is (n - 1) + 1 / (n - 1) - 1.
    assert residual_kurtosis(dot).tolist() == [pytest.approx(99 + 1 / 99 - 1)]


def test_noise_raises_the_residual_and_lowers_its_kurtosis(digits: Batch) -> None:
    images = digits[0][:20]
    noisy = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert bool((median_residual(noisy) > median_residual(images)).all())
    assert bool((residual_kurtosis(noisy) < residual_kurtosis(images)).all())


def test_other_inputs_and_functions_are_refused() -> None:
    rows = torch.zeros(3, 5)
    seen = Observation(rows, rows, lambda images: images)
    with pytest.raises(InputError, match=r"images .* for median_residual, got \(5,\)"):
        InputStatistic("median_residual")(seen)
    with pytest.raises(InputError, match="of the functions median_residual, .*, got 'mean'"):
        InputStatistic("mean")
