"""The promises about false alarms, on real digits and fashion articles, over 200 random splits."""

import numpy as np
import pytest
from scipy import stats

from leery import PAPER_METRICS, Detector
from leery.attacks import BIM
from leery.calibration import Calibration
from leery.classifiers import pretrained
from leery.data import load
from leery.detector import MetricTable

CALIBRATED, JUDGED, SPLITS = 2000, 3000, 200


@pytest.fixture(scope="module", params=["mnist", "fashion-mnist"])
def clean(request: pytest.FixtureRequest) -> tuple[np.ndarray, MetricTable]:
    """Scores and metrics of 5,000 clean test images that no part of the detector has seen."""
    model = pretrained(request.param).model
    images, labels = load(request.param, "train")
    detector = Detector(model, metrics=PAPER_METRICS, passes=20, combiner="logistic").fit(
        images[:6000], labels[:6000]
    )
    test, truth = load(request.param, "test")
    attack = BIM(0.12)
    detector.fit_combiner(test[:500], truth[:500], attacks=[attack])
    verdicts = detector.judge(test[1000 : 1000 + CALIBRATED + JUDGED])
    return verdicts.score, verdicts.table


def splits() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.permutation(CALIBRATED + JUDGED) for _ in range(SPLITS)]


def false_alarms(scores: np.ndarray, table: MetricTable, **settings: object) -> np.ndarray:
    """How many of the judged images each split's calibration flags."""
    found = []
    for order in splits():
        held, fresh = order[:CALIBRATED], order[CALIBRATED:]
        calibration = Calibration(
            **{"promise": "marginal", "confidence": 0.95, "per_class": False, **settings},  # type: ignore[arg-type]
            scores=scores[held],
            predicted=table.predicted[held],
        )
        found.append(calibration.flagged(scores[fresh], table.predicted[fresh]).sum())
    return np.array(found)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1])
def test_the_mean_rate_lies_within_the_beta_law(
    clean: tuple[np.ndarray, MetricTable], fpr: float
) -> None:
    scores, table = clean
    assert len(np.unique(scores)) == len(scores)
    found = false_alarms(scores, table, fpr=fpr)
    rank = int(fpr * (CALIBRATED + 1) + 1e-9)
    # Among exchangeable images the number of false alarms is beta-binomial.
    law = stats.betabinom(JUDGED, rank, CALIBRATED + 1 - rank)
    assert found.mean() == pytest.approx(law.mean(), abs=4 * law.std() / SPLITS**0.5)
    assert law.mean() / JUDGED <= fpr
    assert found.std() == pytest.approx(law.std(), rel=0.25)
    low, high = law.ppf(1e-5), law.ppf(1 - 1e-5)
    assert ((found >= low) & (found <= high)).all()


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1])
def test_the_pac_promise_is_kept_in_95_of_100_splits(
    clean: tuple[np.ndarray, MetricTable], fpr: float
) -> None:
    scores, table = clean
    found = false_alarms(scores, table, fpr=fpr, promise="pac")
    ranks = np.arange(1, CALIBRATED)
    rank = int((stats.beta.cdf(fpr, ranks, CALIBRATED + 1 - ranks) >= 0.95).sum())
    law = stats.betabinom(JUDGED, rank, CALIBRATED + 1 - rank)
    # The judged images are a sample too: some splits seem to break what they keep.
    expected = float(law.sf(fpr * JUDGED))
    broken = (found > fpr * JUDGED).mean()
    assert broken <= expected + 4 * (expected * (1 - expected) / SPLITS) ** 0.5
    assert expected < 0.15


def test_each_predicted_class_keeps_the_rate(clean: tuple[np.ndarray, MetricTable]) -> None:
    scores, table = clean
    generator = np.random.default_rng(1)
    rates = []
    for _ in range(50):
        order = generator.permutation(len(scores))
        held, fresh = order[:CALIBRATED], order[CALIBRATED:]
        calibration = Calibration(
            0.05, "marginal", 0.95, True, scores[held], table.predicted[held]
        ).checked(10)
        flagged = calibration.flagged(scores[fresh], table.predicted[fresh])
        classes = table.predicted[fresh]
        rates.append([flagged[classes == label].mean() for label in range(10)])
    # About 200 images a class: the rank is 10 of 201, and a class's mean has a standard error
    # of 0.003.
    assert np.abs(np.mean(rates, axis=0) - 10 / 201).max() < 0.012
