"""What a calibration promises, against the laws that say how often it may fail."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from leery.calibration import Calibration
from leery.errors import InputError

Draw = Callable[[np.random.Generator, int], np.ndarray]

DRAWS: dict[str, Draw] = {
    "normal": lambda generator, count: generator.normal(size=count),
    "heavy tails": lambda generator, count: generator.standard_cauchy(count),
    "with ties": lambda generator, count: np.round(generator.normal(size=count), 1),
}


def calibrated(
    scores: np.ndarray, fpr: float, promise: str = "marginal", predicted: np.ndarray | None = None
) -> Calibration:
    per_class = predicted is not None
    predicted = np.zeros(len(scores), int) if predicted is None else predicted
    return Calibration(fpr, promise, 0.95, per_class, scores, predicted)  # type: ignore[arg-type]


def rates(draw: Draw, fpr: float, promise: str, count: int, repeats: int = 300) -> np.ndarray:
    """The false-alarm rate of each of many calibrations, on images of their own."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(repeats):
        calibration = calibrated(draw(generator, count), fpr, promise)
        fresh = draw(generator, 4000)
        found.append(calibration.flagged(fresh, np.zeros(4000, int)).mean())
    return np.array(found)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("name", DRAWS)
def test_the_marginal_rate_is_kept_on_average_and_follows_the_beta_law(
    name: str, fpr: float
) -> None:
    count = 500
    found = rates(DRAWS[name], fpr, "marginal", count)
    rank = int(fpr * (count + 1) + 1e-9)
    law = stats.beta(rank, count + 1 - rank)
    error = (law.var() + fpr / 4000) ** 0.5 / len(found) ** 0.5
    assert found.mean() < law.mean() + 4 * error
    assert law.mean() <= fpr
    if name != "with ties":
        assert found.mean() > law.mean() - 4 * error
        assert found.std() == pytest.approx((law.var() + fpr / 4000) ** 0.5, rel=0.2)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("name", DRAWS)
def test_the_pac_promise_is_kept_by_nineteen_of_twenty_sets(name: str, fpr: float) -> None:
    generator = np.random.default_rng(1)
    broken = 0
    for _ in range(400):
        scores = DRAWS[name](generator, 500)
        calibration = calibrated(scores, fpr, "pac")
        fresh = DRAWS[name](generator, 100_000)
        broken += bool(calibration.flagged(fresh, np.zeros(100_000, int)).mean() > fpr)
    # 400 sets break it 20 times at most on average; 38 is beyond four standard errors.
    assert broken < 38
    if name != "with ties":
        assert broken > 0


def test_the_pac_rank_is_the_largest_that_the_beta_law_allows() -> None:
    scores = np.arange(1000.0)
    for fpr in (0.01, 0.03, 0.2):
        flagged = int(calibrated(scores, fpr, "pac").flagged(scores, np.zeros(1000, int)).sum())
        rank = flagged + 1
        # Fewer than ``rank`` of a thousand clean scores above: binomial, an equal law.
        assert stats.binom.cdf(rank - 1, 1000, fpr) <= 0.05
        assert stats.binom.cdf(rank, 1000, fpr) > 0.05


@pytest.mark.parametrize(("promise", "needed"), [("marginal", 99), ("pac", 299)])
def test_the_needed_number_of_images_is_enough_and_one_less_is_not(
    promise: str, needed: int
) -> None:
    calibration = calibrated(np.arange(float(needed)), 0.01, promise).checked(1)
    assert calibration.flagged(np.array([needed + 1.0]), np.zeros(1, int)).all()
    few = calibrated(np.arange(float(needed - 1)), 0.01, promise)
    with pytest.raises(InputError, match=rf"at least {needed} clean .*0.01.*, got {needed - 1}; "):
        few.checked(1)
    assert not few.flagged(np.array([needed + 1.0]), np.zeros(1, int)).any()


def test_each_class_keeps_the_rate_by_itself() -> None:
    generator = np.random.default_rng(2)
    predicted = generator.integers(0, 3, 6000)
    scores = generator.normal(size=6000) * (1 + 3 * predicted)
    each = calibrated(scores[:3000], 0.05, predicted=predicted[:3000]).checked(3)
    one = calibrated(scores[:3000], 0.05)
    for label in range(3):
        rows = 3000 + np.flatnonzero(predicted[3000:] == label)
        assert each.flagged(scores[rows], predicted[rows]).mean() == pytest.approx(0.05, abs=0.025)
    rows = 3000 + np.flatnonzero(predicted[3000:] == 2)
    assert one.flagged(scores[rows], predicted[rows]).mean() > 0.1
    alone = calibrated(scores[:3000][predicted[:3000] == 1], 0.05)
    ones = scores[3000:][predicted[3000:] == 1]
    second = np.ones(len(ones), int)
    assert np.array_equal(each.p_values(ones, second), alone.p_values(ones, second))


def test_a_class_with_too_few_images_is_named() -> None:
    predicted = np.repeat([0, 1, 3], [30, 10, 20])
    message = r"at least 19 .* of 0.05 in each predicted class, got 10, 0 in classes 1, 2; add some"
    with pytest.raises(InputError, match=message):
        calibrated(np.arange(60.0), 0.05, predicted=predicted).checked(4)


def test_p_values_of_clean_scores_are_uniform() -> None:
    generator = np.random.default_rng(3)
    found = calibrated(generator.normal(size=2000), 0.05).p_values(
        generator.normal(size=2000), np.zeros(2000, int)
    )
    assert found.min() >= 1 / 2001
    assert stats.kstest(found, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"fpr": 0.0}, "false-alarm rate between 0 and 1, got 0.0"),
        ({"fpr": float("nan")}, "false-alarm rate between 0 and 1, got nan"),
        ({"promise": "sure"}, '"marginal" or "pac", got \'sure\''),
        ({"confidence": 1.0}, "confidence between 0 and 1, got 1.0"),
        ({"scores": np.array([np.nan] * 50)}, "a finite score for each calibration image"),
        ({"predicted": np.zeros(3, int)}, "a finite score for each calibration image"),
    ],
)
def test_impossible_calibrations_are_refused(changes: dict[str, object], text: str) -> None:
    whole: dict[str, object] = {
        "fpr": 0.05,
        "promise": "marginal",
        "confidence": 0.95,
        "per_class": False,
        "scores": np.arange(50.0),
        "predicted": np.zeros(50, int),
    }
    with pytest.raises(InputError, match=text):
        Calibration(**{**whole, **changes})  # type: ignore[arg-type]


def test_a_class_that_calibration_never_saw_is_not_flagged() -> None:
    scores = np.arange(100.0)
    made = Calibration(0.05, "marginal", 0.95, True, scores, np.zeros(100, dtype=np.int64))
    assert made.flagged(np.array([1e9, 1e9]), np.array([0, 1])).tolist() == [True, False]
    assert made.p_values(np.array([1e9, 1e9]), np.array([0, 1])).tolist() == [1 / 101, 1.0]


def test_more_confidence_makes_the_threshold_stricter() -> None:
    scores, classes = np.arange(1000.0), np.zeros(1000, dtype=np.int64)
    flagged = [
        Calibration(0.05, "pac", confidence, False, scores, classes).flagged(scores, classes).sum()
        for confidence in (0.5, 0.8, 0.95, 0.999)
    ]
    assert flagged == sorted(flagged, reverse=True)
    assert len(set(flagged)) == 4
