"""Metrics of hidden units under dropout against plain loops, and their limits."""

import numpy as np
import torch
from torch import Tensor, nn

from leery.mc_dropout import insert_dropout
from leery.metrics import LogitFeatureShift, Metric, UnitDispersion
from leery.observation import HEAD, Observation, Observer

Batch = tuple[Tensor, Tensor]


def observed(model: nn.Module, metric: Metric, images: Tensor, passes: int) -> Observation:
    observer = Observer(model, metric.needs, head="hidden", passes=passes)
    return next(iter(observer.stream(images)))


def test_dispersion_is_the_relative_length_of_the_deviations(
    digit_net: nn.Module, digits: Batch
) -> None:
    metric = UnitDispersion()
    seen = observed(digit_net, metric, digits[0][:10], 9)
    units = seen.pass_layers[HEAD].double().numpy()
    expected = [
        np.linalg.norm(units[:, row].std(0)) / np.linalg.norm(units[:, row].mean(0))
        for row in range(10)
    ]
    assert np.allclose(metric(seen), expected)
    assert metric(observed(digit_net, metric, digits[0][:3], 1)).tolist() == [0, 0, 0]


def test_the_shift_of_logits_is_compared_with_that_of_the_units(
    digit_net: nn.Module, digits: Batch
) -> None:
    metric = LogitFeatureShift()
    seen = observed(digit_net, metric, digits[0][:10], 7)
    units, still = (part.double().numpy() for part in (seen.pass_layers[HEAD], seen.layers[HEAD]))
    logs = seen.probs.double().clamp_min(1e-300).log().numpy()
    plain = seen.logits.double().log_softmax(1).numpy()
    ratios = np.zeros((7, 10))
    for draw in range(7):
        for row in range(10):
            one, other = logs[draw, row], plain[row]
            output = np.linalg.norm((one - one.mean()) - (other - other.mean()))
            ratios[draw, row] = np.log(output / np.linalg.norm(units[draw, row] - still[row]))
    assert np.allclose(metric(seen), ratios.mean(0), rtol=1e-3)


def test_dropout_that_nothing_follows_moves_no_unit(digits: Batch) -> None:
    """The last hidden layer stands before the dropout: its units are the same in each pass."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10)).eval()
    late = insert_dropout(model, before="3", p=0.5)
    observer = Observer(late, UnitDispersion().needs, head="2", passes=4)
    found = UnitDispersion()(next(iter(observer.stream(digits[0][:4]))))
    assert torch.allclose(found, torch.zeros(4, dtype=torch.float64), atol=1e-6)
