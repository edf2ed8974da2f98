"""The conformal combiner against p-values counted one by one, and its laws."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from leery.combiners import ConformalCombiner, Facts, LogisticCombiner
from leery.combiners._conformal import strata_of_doubt
from leery.errors import InputError, NotFittedError
from leery.metrics import make_metrics
from leery.metrics.uncertainty import UNCERTAINTY

UNSURE = ("variance", "predictive_entropy")


def reference(count: int = 400, seed: int = 0) -> np.ndarray:
    """Two metrics of uncertainty and two of closeness that depend on them."""
    generator = np.random.default_rng(seed)
    doubt = generator.gamma(2.0, size=count)
    return np.column_stack(
        [
            doubt + 0.1 * generator.normal(size=count),
            doubt + 0.1 * generator.normal(size=count),
            -doubt + 0.3 * generator.normal(size=count),
            generator.normal(size=count),
        ]
    )


NAMES = (*UNSURE, "kernel_density", "kl_divergence")


def facts(names: Sequence[str]) -> list[Facts]:
    return [Facts.of(metric) for metric in make_metrics(names)]


def conformal(names: Sequence[str], held: np.ndarray) -> ConformalCombiner:
    return ConformalCombiner(facts(names)).fit(held, np.zeros(len(held), dtype=np.int64))


def logistic(values: np.ndarray, names: Sequence[str] = NAMES) -> LogisticCombiner:
    """Taught that every other row is adversarial."""
    truth = np.arange(len(values)) % 2 == 0
    nothing = np.zeros(len(values), dtype=np.int64)
    return LogisticCombiner(facts(names)).fit(values, nothing, adversarial=truth)


def score(combiner: ConformalCombiner | LogisticCombiner, values: np.ndarray) -> np.ndarray:
    found: np.ndarray = combiner(torch.from_numpy(values), torch.zeros(len(values))).numpy()
    return found


def contributions(combiner: ConformalCombiner, values: np.ndarray) -> np.ndarray:
    found = combiner.contributions(torch.from_numpy(values), torch.zeros(len(values)))
    array: np.ndarray = found.numpy()
    return array


def test_a_single_metric_is_ranked_among_the_reference() -> None:
    held = np.arange(100.0).reshape(-1, 1)
    values = np.array([[-5.0], [0.0], [49.5], [88.0]])
    found = score(conformal(("kl_divergence",), held), values)
    expected = [-math.log((1 + (held >= value).sum()) / 101) for value in values[:, 0]]
    assert np.allclose(found, expected)
    # A confidence is suspicious when it is small.
    mirrored = score(conformal(("confidence",), -held), -values)
    assert np.allclose(mirrored, expected)


def test_beyond_the_largest_tenth_the_tail_is_exponential() -> None:
    generator = np.random.default_rng(0)
    held = generator.exponential(3.0, size=(5000, 1))
    found = score(conformal(("kl_divergence",), held), np.array([[10.0], [30.0], [60.0]]))
    # -log P(X > x) = x / 3; the mean excess of 500 has a standard error of 4.5 %.
    assert found == pytest.approx([10 / 3, 10, 20], rel=0.15)


def test_the_score_is_the_smallest_p_value_and_uncertainty_counts_once() -> None:
    combiner = conformal(UNSURE, reference()[:, :2])
    values = reference(50, seed=1)[:, :2]
    alone = [
        score(conformal((name,), reference()[:, [place]]), values[:, [place]])
        for place, name in enumerate(UNSURE)
    ]
    assert np.allclose(score(combiner, values), np.mean(alone, axis=0))
    with_closeness = conformal((*UNSURE, "kl_divergence"), reference()[:, [0, 1, 3]])
    more = score(with_closeness, np.column_stack([values, np.full(50, -100.0)]))
    assert np.allclose(more, score(combiner, values))
    least = score(with_closeness, np.column_stack([values, np.full(50, 100.0)]))
    assert (least > 10).all()


def test_closeness_is_held_against_references_of_like_doubt() -> None:
    """Far from the data is usual where the classifier doubts, and suspicious where it is sure."""
    combiner = conformal(NAMES, reference())
    doubtful = np.array([[5.0, 5.0, -5.0, 0.0]])
    sure_and_far = np.array([[0.4, 0.4, -5.0, 0.0]])
    sure_and_near = np.array([[0.4, 0.4, -0.4, 0.0]])
    assert score(combiner, sure_and_far) > 2 * score(combiner, doubtful)
    assert score(combiner, sure_and_far) > 4 * score(combiner, sure_and_near)
    density = contributions(combiner, sure_and_far)[0]
    assert density[2] == pytest.approx(float(score(combiner, sure_and_far)[0]))
    assert (density[[0, 1, 3]] == 0).all()


def test_contributions_add_up_to_the_score_and_rise_with_suspicion() -> None:
    combiner = conformal(NAMES, reference())
    values = reference(200, seed=5)
    assert np.allclose(contributions(combiner, values).sum(1), score(combiner, values))
    assert (contributions(combiner, values) >= 0).all()
    nearer = values.copy()
    nearer[:, 2] += 1.0
    assert (score(combiner, nearer) <= score(combiner, values) + 1e-12).all()


def test_a_reference_of_equal_values_still_gives_p_values() -> None:
    held = np.ones((80, 3))
    combiner = conformal((*UNSURE, "kernel_density"), held)
    assert score(combiner, np.ones((1, 3))) == pytest.approx(0.0)
    far = score(combiner, np.array([[2.0, 2.0, -9.0]]))
    assert far == pytest.approx(math.log(81))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_ties_leave_no_stratum_with_too_few(share: float) -> None:
    held = reference(300)
    held[: int(share * 300), :2] = 0.5
    rows = torch.from_numpy(held[:, :2])
    strata = strata_of_doubt(rows, rows, ConformalCombiner.least)[0].numpy()
    assert np.bincount(strata)[np.unique(strata)].min() >= ConformalCombiner.least
    own, theirs = strata_of_doubt(rows, torch.from_numpy(reference(100, seed=9)[:, :2]), 40)
    assert set(own.tolist()) <= set(theirs.tolist())


def test_a_combiner_comes_back_from_its_arrays() -> None:
    combiner = conformal(NAMES, reference())
    values = reference(20, seed=3)
    again = ConformalCombiner(facts(NAMES)).restore(combiner.state_dict())
    assert np.array_equal(score(again, values), score(combiner, values))
    fitted = logistic(values)
    back = LogisticCombiner(facts(NAMES)).restore(fitted.state_dict())
    assert np.array_equal(score(back, values), score(fitted, values))


def test_what_cannot_be_a_reference_is_refused() -> None:
    with pytest.raises(InputError, match="at least 40 images .*, got 39; add some"):
        conformal(NAMES, reference(39))
    with pytest.raises(InputError, match="finite metrics, got 1 rows"):
        conformal(NAMES, np.vstack([reference(), [[np.nan, 0, 0, 0]]]))
    with pytest.raises(InputError, match="reference of 4 metrics"):
        conformal(NAMES, reference()[:, :3])
    with pytest.raises(InputError, match="finite metrics, got 1 rows"):
        score(conformal(NAMES, reference()), np.full((1, 4), np.inf))


def test_a_row_s_log_odds_do_not_depend_on_the_other_rows() -> None:
    """numpy adds in another order along the other axis, and for a single row."""
    values = np.asfortranarray(np.random.default_rng(0).normal(size=(300, 10)) * 1e3)
    fitted = logistic(
        values, [*UNCERTAINTY, "kernel_density", "kl_divergence", "kl_divergence_sum"]
    )
    alone = [score(fitted, values[row : row + 1])[0] for row in range(300)]
    assert np.array_equal(score(fitted, values), alone)


def test_a_metric_that_is_suspicious_both_ways_has_twice_the_smaller_p_value() -> None:
    held = np.random.default_rng(0).normal(size=(99, 1))
    both = ConformalCombiner([Facts("size", "size", "both")])
    both.fit(held, np.zeros(99, dtype=np.int64))
    for value in (-0.7, 0.0, 1.1):
        below, above = (1 + (held <= value).sum()) / 100, (1 + (held >= value).sum()) / 100
        expected = -math.log(min(1.0, 2 * min(below, above)))
        assert score(both, np.array([[value]])) == pytest.approx(expected)
    low, high = score(both, np.array([[-9.0], [9.0]]))
    assert min(low, high) > math.log(50)


def test_a_combiner_that_was_not_fitted_says_so() -> None:
    for combiner in (ConformalCombiner(facts(NAMES)), LogisticCombiner(facts(NAMES))):
        with pytest.raises(NotFittedError, match="got one that is not; call fit first"):
            score(combiner, reference(3))


def test_the_log_odds_have_the_derivative_of_their_weights() -> None:
    fitted = logistic(reference())
    values = torch.from_numpy(reference(5, seed=2)).requires_grad_()
    (gradient,) = torch.autograd.grad(fitted(values, torch.zeros(5)).sum(), values)
    assert torch.allclose(gradient, (fitted.weights / fitted.scale).expand(5, 4))
