"""The combiners against p-values counted one by one, other libraries, and their laws."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from leery.combiners import (
    EXPONENT,
    FAMILY_WEIGHTS,
    Combiner,
    ConformalCombiner,
    Facts,
    LogisticCombiner,
    MonotoneLogisticCombiner,
)
from leery.combiners._logistic import bounded_regression
from leery.errors import InputError, NotFittedError
from leery.metrics import make_metrics
from leery.metrics.uncertainty import UNCERTAINTY

NAMES = ("variance", "predictive_entropy", "kernel_density", "kl_divergence")


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


def facts(names: Sequence[str]) -> list[Facts]:
    return [Facts.of(metric) for metric in make_metrics(names)]


def of_one_class(values: np.ndarray) -> np.ndarray:
    return np.zeros(len(values), dtype=np.int64)


def conformal(given: Sequence[Facts], held: np.ndarray) -> ConformalCombiner:
    return ConformalCombiner(given).fit(held, of_one_class(held))


def taught(kind: type[Combiner], values: np.ndarray, truth: np.ndarray) -> Combiner:
    combiner = kind(facts(NAMES[: values.shape[1]]))
    return combiner.fit(values, of_one_class(values), adversarial=truth)


def score(combiner: Combiner, values: np.ndarray, predicted: int = 0) -> np.ndarray:
    classes = torch.full((len(values),), predicted)
    found: np.ndarray = combiner(torch.from_numpy(values), classes).numpy()
    return found


def contributions(combiner: Combiner, values: np.ndarray) -> np.ndarray:
    classes = torch.zeros(len(values), dtype=torch.int64)
    found: np.ndarray = combiner.contributions(torch.from_numpy(values), classes).numpy()
    return found


def p_value(held: np.ndarray, value: float) -> float:
    return float(1 + (held >= value).sum()) / (len(held) + 1)


def test_a_single_metric_is_ranked_among_the_reference() -> None:
    held = np.arange(100.0).reshape(-1, 1)
    values = np.array([[-5.0], [0.0], [40.0], [88.0]])
    expected = [-math.log(p_value(held, value)) for value in values[:, 0]]
    assert np.allclose(score(conformal([Facts("a", "a", "larger")], held), values), expected)
    mirrored = score(conformal([Facts("a", "a", "smaller")], -held), -values)
    assert np.allclose(mirrored, expected)


def test_between_reference_values_the_evidence_is_interpolated() -> None:
    held = np.arange(100.0).reshape(-1, 1)
    combiner = conformal([Facts("a", "a", "larger")], held)
    left, middle, right = score(combiner, np.array([[40.0], [40.25], [41.0]]))
    assert middle == pytest.approx(0.75 * left + 0.25 * right)


def test_above_the_largest_values_the_tail_is_exponential() -> None:
    held = np.random.default_rng(0).exponential(3.0, size=(5000, 1))
    combiner = conformal([Facts("a", "a", "larger")], held)
    found = score(combiner, np.array([[10.0], [30.0], [60.0]]))
    # -log P(X > x) = x / 3; the mean excess of 250 has a standard error of 6.3 %.
    assert found == pytest.approx([10 / 3, 10, 20], rel=0.2)


def test_the_score_is_the_log_of_the_weighted_power_mean_of_p_values() -> None:
    held = np.random.default_rng(0).normal(size=(2000, 2))
    families = ("agreement", "consistency")
    combiner = conformal([Facts(name, name, "larger") for name in families], held)
    alone = [
        conformal([Facts(name, name, "larger")], held[:, [place]])
        for place, name in enumerate(families)
    ]
    values = np.random.default_rng(1).normal(size=(50, 2)) + 1
    first, second = (score(one, values[:, [place]]) for place, one in enumerate(alone))
    weights = np.array([FAMILY_WEIGHTS[name] for name in families])
    p_values = np.exp(-np.stack([first, second], 1))
    mean = (weights / weights.sum() * p_values**-EXPONENT).sum(1) ** (-1 / EXPONENT)
    assert np.allclose(score(combiner, values), -np.log(mean))
    assert EXPONENT == 0.2


def rank(combiner: ConformalCombiner, *rows: tuple[float, ...]) -> list[int]:
    """Places of the rows from the most suspicious to the least."""
    return [int(place) for place in np.argsort(-score(combiner, np.array(rows)))]


def test_two_moderate_families_and_one_extreme_one_are_both_seen() -> None:
    held = np.random.default_rng(0).normal(size=(4000, 2))
    combiner = conformal([Facts(name, name, "larger") for name in ("one", "other")], held)
    # By the smallest p-value alone, "single" would be before "moderate"; by the sum of the logs,
    # "moderate" would be before "extreme".
    moderate, extreme, single = (3.0, 3.0), (4.5, -1.0), (3.4, -1.0)
    assert rank(combiner, moderate, extreme, single) == [1, 0, 2]


def test_a_family_without_a_weight_of_its_own_is_not_drowned() -> None:
    generator = np.random.default_rng(0)
    names = ("agreement", "consistency", "shift", "distance")
    combiner = conformal(
        [Facts(name, name, "larger") for name in names], generator.normal(size=(2000, 4))
    )
    threshold = np.quantile(score(combiner, generator.normal(size=(4000, 4))), 0.99)
    assert score(combiner, np.array([[0.0, 0.0, 0.0, 6.0]])) > threshold


def test_a_family_of_many_metrics_alarms_as_often_as_one_of_few() -> None:
    generator = np.random.default_rng(0)
    given = [Facts(str(place), "many", "larger") for place in range(8)]
    held, fresh = generator.normal(size=(2, 4000, 8))
    found = score(conformal(given, held), fresh)
    # A uniform p-value: the share below 5 % has a standard error of 0.34 %, and that again
    # for the reference.
    assert (found > -math.log(0.05)).mean() == pytest.approx(0.05, abs=0.015)


def test_the_median_of_the_class_is_taken_off_where_the_metric_says_so() -> None:
    generator = np.random.default_rng(0)
    classes = np.arange(2000) % 2
    held = (generator.normal(size=2000) + 10 * classes).reshape(-1, 1)
    by_class = ConformalCombiner([Facts("a", "a", "larger", by_class=True)]).fit(held, classes)
    absolute = ConformalCombiner([Facts("a", "a", "larger")]).fit(held, classes)
    # Usual for class 1, unheard of for class 0; as absolute values the same for both.
    value = np.array([[10.0]])
    assert score(by_class, value, 0) > 5
    assert score(by_class, value, 1) < 1.5
    assert score(absolute, value, 0) == score(absolute, value, 1)
    # Of a class without reference images the median of all is taken off.
    assert np.isfinite(score(by_class, value, 7))


def test_contributions_add_up_to_the_score_and_name_its_metric() -> None:
    combiner = conformal(facts(NAMES), reference())
    values = reference(200, seed=5)
    found = contributions(combiner, values)
    assert np.allclose(found.sum(1), score(combiner, values))
    families = [fact.family for fact in facts(NAMES)]
    for family in set(families):
        own = [place for place, name in enumerate(families) if name == family]
        assert ((found[:, own] > 0).sum(1) <= 1).all()
    assert (found >= 0).all()
    far = np.array([[2.0, 2.0, -2.0, 50.0]])
    assert contributions(combiner, far)[0].argmax() == 3


def test_a_family_has_the_part_that_it_adds_to_the_sum() -> None:
    held = np.random.default_rng(0).normal(size=(500, 2))
    combiner = conformal([Facts("a", "a", "larger"), Facts("b", "b", "larger")], held)
    least, median = np.sort(held, 0)[0], np.sort(held, 0)[250]
    values = np.stack([least, [least[0], median[1]], median, [median[0], 9.0]])
    found = contributions(combiner, values)
    # At a p-value of 1 a family adds nothing, however large its weight.
    assert (found[:2, 0] == 0).all()
    assert found[0, 1] == 0
    powers = np.array([[p_value(held[:, at], row[at]) for at in (0, 1)] for row in values[:3]])
    added = (powers**-EXPONENT - 1) / 2
    expected = np.log(1 + added.sum(1)) / EXPONENT
    assert np.allclose(found[:3].sum(1), expected)
    assert np.allclose(found[1:3], added[1:] / added[1:].sum(1, keepdims=True) * expected[1:, None])
    assert found[3, 1] > 5 * found[3, 0] > 0


def test_the_score_never_falls_when_a_metric_becomes_more_suspicious() -> None:
    values = reference(200, seed=5)
    truth = np.random.default_rng(0).random(400) < 0.5
    for combiner in (
        conformal(facts(NAMES), reference()),
        taught(MonotoneLogisticCombiner, reference(), truth),
    ):
        for place, sign in enumerate((1, 1, -1, 1)):
            more = values.copy()
            more[:, place] += 3.0 * sign
            assert (score(combiner, more) >= score(combiner, values) - 1e-12).all()


def test_a_reference_of_equal_values_still_gives_p_values() -> None:
    combiner = conformal(facts(NAMES[:3]), np.ones((80, 3)))
    assert score(combiner, np.ones((1, 3))) == pytest.approx(0.0)
    assert np.isfinite(score(combiner, np.array([[2.0, 2.0, -9.0]]))).all()


def test_a_combiner_comes_back_from_its_arrays() -> None:
    combiner, values = conformal(facts(NAMES), reference()), reference(20, seed=3)
    again = ConformalCombiner(facts(NAMES)).restore(combiner.state_dict())
    assert np.array_equal(score(again, values), score(combiner, values))
    for kind in (LogisticCombiner, MonotoneLogisticCombiner):
        fitted = taught(kind, values, np.arange(20) % 2 == 0)
        back = kind(facts(NAMES)).restore(fitted.state_dict())
        assert np.array_equal(score(back, values), score(fitted, values))


def test_what_cannot_be_a_reference_is_refused() -> None:
    with pytest.raises(InputError, match="at least 40 images .*, got 39; add some"):
        conformal(facts(NAMES), reference(39))
    with pytest.raises(InputError, match="finite metrics, got 1 rows"):
        conformal(facts(NAMES), np.vstack([reference(), [[np.nan, 0, 0, 0]]]))
    with pytest.raises(InputError, match="reference of 4 metrics"):
        conformal(facts(NAMES), reference()[:, :3])
    with pytest.raises(InputError, match="finite metrics, got 1 rows"):
        score(conformal(facts(NAMES), reference()), np.full((1, 4), np.inf))
    with pytest.raises(InputError, match="not adversarial for the conformal combiner"):
        ConformalCombiner(facts(NAMES)).fit(
            reference(), of_one_class(reference()), adversarial=np.ones(400, dtype=bool)
        )


def test_a_row_s_log_odds_do_not_depend_on_the_other_rows() -> None:
    """numpy adds in another order along the other axis, and for a single row."""
    values = np.asfortranarray(np.random.default_rng(0).normal(size=(300, 11)) * 1e3)
    names = [*UNCERTAINTY, "kernel_density", "kl_divergence", "kl_divergence_sum"]
    for kind in (LogisticCombiner, MonotoneLogisticCombiner):
        fitted = kind(facts(names)).fit(
            values, of_one_class(values), adversarial=np.arange(300) % 2 == 0
        )
        alone = [score(fitted, values[row : row + 1])[0] for row in range(300)]
        assert np.array_equal(score(fitted, values), alone)


def test_a_metric_that_is_suspicious_both_ways_has_twice_the_smaller_p_value() -> None:
    held = np.sort(np.random.default_rng(0).normal(size=99)).reshape(-1, 1)
    both = conformal([Facts("size", "size", "both")], held)
    for value in held[[20, 50, 80], 0]:
        below, above = p_value(-held, -value), p_value(held, value)
        expected = -math.log(min(1.0, 2 * min(below, above)))
        assert score(both, np.array([[value]])) == pytest.approx(expected)
    low, high = score(both, np.array([[-9.0], [9.0]]))
    assert min(low, high) > math.log(50)


def test_a_combiner_that_was_not_fitted_says_so() -> None:
    for kind in (ConformalCombiner, LogisticCombiner, MonotoneLogisticCombiner):
        with pytest.raises(
            NotFittedError,
            match=f"expected a fitted {kind.__name__}, got an unfitted one; call fit first",
        ):
            score(kind(facts(NAMES)), reference(3))


def test_the_score_has_the_derivative_of_its_evidence() -> None:
    values = torch.from_numpy(reference(30, seed=2)).requires_grad_()
    classes = torch.zeros(30, dtype=torch.int64)
    truth = np.random.default_rng(0).random(400) < 0.5
    for combiner in (
        conformal(facts(NAMES), reference()),
        taught(LogisticCombiner, reference(), truth),
    ):
        (gradient,) = torch.autograd.grad(combiner(values, classes).sum(), values)
        step = 1e-7 * torch.sign(torch.randn(30, 4, dtype=torch.float64))
        with torch.no_grad():
            change = (combiner(values + step, classes) - combiner(values - step, classes)) / 2
        assert torch.allclose(change, (gradient * step).sum(1), atol=1e-10)


def test_what_weak_attacks_make_smaller_does_not_make_them_cleaner() -> None:
    """Noise and squeezing undo a weak attack, and its margin is a little smaller than usual."""
    named = [
        Facts("noise", "consistency", "larger"),
        Facts("log_margin", "forward pass", "smaller"),
    ]
    values = np.random.default_rng(0).normal(size=(400, 2))
    truth = np.arange(400) % 2 == 0
    values[truth] += [4, 0]
    combiner = MonotoneLogisticCombiner(named).fit(
        values, np.zeros(400, dtype=np.int64), adversarial=truth
    )
    usual, weak = score(combiner, np.array([[0.5, 0.0], [-1.5, -0.5]]))
    assert weak > usual
    alone = MonotoneLogisticCombiner(named[:1]).fit(
        values[:, :1], np.zeros(400, dtype=np.int64), adversarial=truth
    )
    low, high = score(alone, np.array([[-1.0], [0.0]]))
    assert low < high


def test_without_bounds_that_bind_the_regression_is_scikit_learn_s() -> None:
    truth = np.arange(600) % 2 == 0
    rows = np.random.default_rng(0).exponential(size=(600, 3)) + truth[:, None] * [2.0, 1.0, 0.5]
    weights, bias = bounded_regression(rows, truth)
    rival = LogisticRegression(tol=1e-8, max_iter=1000).fit(rows, truth)
    assert (rival.coef_ > 0).all()
    assert np.allclose(weights, rival.coef_[0], atol=1e-3)
    assert float(bias) == pytest.approx(float(rival.intercept_[0]), abs=1e-3)


def test_what_is_suspicious_by_no_metric_has_the_bias_and_an_order() -> None:
    truth = np.arange(400) % 2 == 0
    values = reference() + 3.0 * np.outer(truth, [1, 1, -1, 1])
    combiner = taught(MonotoneLogisticCombiner, values, truth)
    usual = np.quantile(values[~truth] * [1, 1, -1, 1], [[0.2], [0.5], [0.9]], axis=0)
    found = score(combiner, usual.reshape(3, 4) * [1, 1, -1, 1])
    # The mean evidence at the 90th percentile is log 10 nats, of which a hundredth counts.
    assert found[2] - combiner.intercept == pytest.approx(0.01 * math.log(10), rel=0.1)
    assert found[0] < found[1] < found[2]


def test_a_metric_that_speaks_against_its_direction_has_no_weight() -> None:
    """A strong attack can look surer than clean images; the paper's regression rewards that."""
    truth = np.arange(600) % 2 == 0
    values = np.random.default_rng(0).normal(size=(600, 2)) + np.outer(truth, [-3.0, 2.0])
    monotone, free = (
        taught(kind, values, truth) for kind in (MonotoneLogisticCombiner, LogisticCombiner)
    )
    assert isinstance(monotone, MonotoneLogisticCombiner)
    assert isinstance(free, LogisticCombiner)
    assert float(monotone.weights[0]) == pytest.approx(0, abs=0.1)
    assert float(monotone.weights[1]) > 0.2
    assert float(free.weights[0]) < 0
    state = {**monotone.state_dict(), "weights": -torch.ones(2, dtype=torch.float64)}
    with pytest.raises(InputError, match="weights of at least 0"):
        MonotoneLogisticCombiner(facts(NAMES[:2])).restore(state)


def test_no_metric_makes_up_for_another_that_is_suspicious() -> None:
    truth = np.arange(600) % 2 == 0
    values = np.random.default_rng(0).normal(size=(600, 2)) + truth[:, None]
    combiner = taught(MonotoneLogisticCombiner, values, truth)
    least, odd = score(combiner, np.array([[-1e6, -1e6], [-1e6, 3.0]]))
    assert (score(combiner, values) >= least).all()
    assert odd > np.median(score(combiner, values[~truth]))


@pytest.mark.parametrize("tied", [8, 100])
def test_beyond_tied_reference_values_lies_all_the_evidence_there_is(tied: int) -> None:
    held = np.concatenate([np.linspace(0, 0.9, 100 - tied), np.ones(tied)]).reshape(-1, 1)
    combiner = conformal([Facts("a", "a", "larger")], held)
    at, beyond, far = score(combiner, np.array([[1.0], [1.5], [50.0]]))
    assert at == pytest.approx(-math.log((1 + tied) / 101))
    assert math.log(101) <= beyond < far


def test_damaged_references_are_refused() -> None:
    state = conformal(facts(NAMES), reference()).state_dict()
    for part, value in (
        ("metric_reference", state["metric_reference"].flip(0)),
        ("family_reference", state["family_reference"].flip(0)),
        ("centres", state["centres"][:0]),
    ):
        with pytest.raises(InputError):
            ConformalCombiner(facts(NAMES)).restore({**state, part: value})
    with pytest.raises(InputError, match="at least 3 rows that are not adversarial, got 2"):
        taught(MonotoneLogisticCombiner, reference(4), np.array([False, False, True, True]))


def test_families_share_the_score_by_their_weights() -> None:
    # Rarer than anything in the reference, each family is as unusual as the other.
    names = ("auxiliary_agreement", "noise_consistency", "shift_consistency")
    generator = np.random.default_rng(0)
    held = generator.normal(size=(500, 1)).repeat(3, 1)
    combiner = conformal(facts(names), held)
    (parts,) = contributions(combiner, np.array([[2.0, 2.0, 2.0]]))
    shares = parts / parts.sum()
    assert FAMILY_WEIGHTS == {"agreement": 0.5, "consistency": 0.25, "shift": 0.25}
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=1e-9)
