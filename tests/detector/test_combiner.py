"""The conformal combiner against p-values counted one by one, and its laws."""

import math

import numpy as np
import pytest

from leery.detector import ConformalCombiner, LogisticCombiner
from leery.detector._combiner import _strata
from leery.errors import InputError

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


def test_a_single_metric_is_ranked_among_the_reference() -> None:
    held = np.arange(100.0).reshape(-1, 1)
    values = np.array([[-5.0], [0.0], [49.5], [88.0]])
    found = ConformalCombiner(("kl_divergence",), held).score(values)
    expected = [-math.log((1 + (held >= value).sum()) / 101) for value in values[:, 0]]
    assert np.allclose(found, expected)
    # A confidence is suspicious when it is small.
    mirrored = ConformalCombiner(("confidence",), -held).score(-values)
    assert np.allclose(mirrored, expected)


def test_beyond_the_largest_tenth_the_tail_is_exponential() -> None:
    generator = np.random.default_rng(0)
    held = generator.exponential(3.0, size=(5000, 1))
    found = ConformalCombiner(("kl_divergence",), held).score(np.array([[10.0], [30.0], [60.0]]))
    # -log P(X > x) = x / 3; the mean excess of 500 has a standard error of 4.5 %.
    assert found == pytest.approx([10 / 3, 10, 20], rel=0.15)


def test_the_score_is_the_smallest_p_value_and_uncertainty_counts_once() -> None:
    combiner = ConformalCombiner(UNSURE, reference()[:, :2])
    values = reference(50, seed=1)[:, :2]
    alone = [
        ConformalCombiner((name,), reference()[:, [place]]).score(values[:, [place]])
        for place, name in enumerate(UNSURE)
    ]
    assert np.allclose(combiner.score(values), np.mean(alone, axis=0))
    with_closeness = ConformalCombiner((*UNSURE, "kl_divergence"), reference()[:, [0, 1, 3]])
    more = with_closeness.score(np.column_stack([values, np.full(50, -100.0)]))
    assert np.allclose(more, combiner.score(values))
    least = with_closeness.score(np.column_stack([values, np.full(50, 100.0)]))
    assert (least > 10).all()


def test_closeness_is_held_against_references_of_like_doubt() -> None:
    """Far from the data is usual where the classifier doubts, and suspicious where it is sure."""
    combiner = ConformalCombiner(NAMES, reference())
    doubtful = np.array([[5.0, 5.0, -5.0, 0.0]])
    sure_and_far = np.array([[0.4, 0.4, -5.0, 0.0]])
    sure_and_near = np.array([[0.4, 0.4, -0.4, 0.0]])
    assert combiner.score(sure_and_far) > 2 * combiner.score(doubtful)
    assert combiner.score(sure_and_far) > 4 * combiner.score(sure_and_near)
    density = combiner.contributions(sure_and_far)[0]
    assert density[2] == pytest.approx(float(combiner.score(sure_and_far)[0]))
    assert (density[[0, 1, 3]] == 0).all()


def test_contributions_add_up_to_the_score_and_rise_with_suspicion() -> None:
    combiner = ConformalCombiner(NAMES, reference())
    values = reference(200, seed=5)
    assert np.allclose(combiner.contributions(values).sum(1), combiner.score(values))
    assert (combiner.contributions(values) >= 0).all()
    nearer = values.copy()
    nearer[:, 2] += 1.0
    assert (combiner.score(nearer) <= combiner.score(values) + 1e-12).all()


def test_a_reference_of_equal_values_still_gives_p_values() -> None:
    held = np.ones((80, 3))
    combiner = ConformalCombiner((*UNSURE, "kernel_density"), held)
    assert combiner.score(np.ones((1, 3))) == pytest.approx(0.0)
    far = combiner.score(np.array([[2.0, 2.0, -9.0]]))
    assert far == pytest.approx(math.log(81))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_ties_leave_no_stratum_with_too_few(share: float) -> None:
    held = reference(300)
    held[: int(share * 300), :2] = 0.5
    strata, _ = _strata(held[:, :2], held[:, :2], ConformalCombiner.least)
    assert np.bincount(strata)[np.unique(strata)].min() >= ConformalCombiner.least
    own, theirs = _strata(held[:, :2], reference(100, seed=9)[:, :2], 40)
    assert set(own) <= set(theirs)


def test_a_combiner_comes_back_from_its_arrays() -> None:
    combiner = ConformalCombiner(NAMES, reference())
    values = reference(20, seed=3)
    again = ConformalCombiner.restore(combiner.to_arrays(), NAMES)
    assert np.array_equal(again.score(values), combiner.score(values))
    fitted = LogisticCombiner.fit(values, np.arange(20) % 2 == 0)
    back = LogisticCombiner.restore(fitted.to_arrays(), NAMES)
    assert np.array_equal(back.score(values), fitted.score(values))


def test_what_cannot_be_a_reference_is_refused() -> None:
    with pytest.raises(InputError, match="at least 40 images .*, got 39; add some"):
        ConformalCombiner(NAMES, reference(39))
    with pytest.raises(InputError, match="finite metrics, got 1 rows"):
        ConformalCombiner(NAMES, np.vstack([reference(), [[np.nan, 0, 0, 0]]]))
    with pytest.raises(InputError, match="reference of 4 metrics"):
        ConformalCombiner(NAMES, reference()[:, :3])
    with pytest.raises(InputError, match="finite metrics, got 1 rows"):
        ConformalCombiner(NAMES, reference()).score(np.full((1, 4), np.inf))


def test_a_row_s_log_odds_do_not_depend_on_the_other_rows() -> None:
    """numpy adds in another order along the other axis, and for a single row."""
    values = np.asfortranarray(np.random.default_rng(0).normal(size=(300, 10)) * 1e3)
    fitted = LogisticCombiner.fit(values, np.arange(300) % 2 == 0)
    alone = [fitted.score(values[row : row + 1])[0] for row in range(300)]
    assert np.array_equal(fitted.score(values), alone)
