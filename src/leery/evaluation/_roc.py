"""ROC measures, with confidence intervals that are clustered by source image."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import special, stats
from sklearn.metrics import roc_curve

from leery.errors import InputError
from leery.evaluation._intervals import Interval, share_interval

__all__ = ["flagged_at_fpr", "roc_auc_difference", "roc_auc_interval", "tpr_at_fpr"]


@dataclass(frozen=True)
class _Placements:
    """The contribution of each row to an ROC-AUC.

    Attributes:
        above: float ``(positives,)``, fraction of negatives that each positive outscores.
        below: float ``(negatives,)``, fraction of positives that outscore each negative.
    """

    above: np.ndarray
    below: np.ndarray

    @property
    def area(self) -> float:
        """The ROC-AUC."""
        return float(self.above.mean())

    def __sub__(self, other: Self) -> Self:
        """The contribution of each row to the difference of two areas."""
        return type(self)(self.above - other.above, self.below - other.below)


def roc_auc_interval(
    scores: np.ndarray, positive: np.ndarray, cluster: np.ndarray, *, confidence: float = 0.95
) -> Interval:
    """ROC-AUC with a confidence interval for clustered rows (an image and its versions).

    The area is the probability that a positive outscores a negative, ties counting half. The
    variance is Obuchowski's. The interval is symmetric on the log-odds scale, so that it stays
    inside [0, 1]; its half-width uses Student's t with clusters - 1 degrees of freedom. For an AUC
    of exactly 0 or 1 it is Wilson's interval with one trial per cluster. For a single cluster it is
    [0, 1]. Clusters are counted in the class that has fewer of them.

    Args:
        scores: float ``(N,)``.
        positive: bool ``(N,)``, True for positives; both kinds must occur.
        cluster: int ``(N,)``, the cluster of each row.
        confidence: confidence level of the interval.

    Raises:
        InputError: when one kind is missing, the lengths differ or a score is not finite.

    Source:
        Obuchowski (1997), "Nonparametric analysis of clustered ROC curve data", Biometrics 53,
        eq. 4-5, built on the structural components of DeLong et al. (1988). Departure: the
        interval on the log-odds scale (Pepe 2003, section 5.2.4).
    """
    placements = _placements(scores, positive)
    estimate = placements.area
    ids = np.unique(cluster, return_inverse=True)[1]
    count = min(_clusters(positive, ids))
    if estimate in (0.0, 1.0) and count > 1:
        return share_interval(round(estimate * count), count, confidence=confidence)
    half = _reach(placements, positive, ids, confidence)
    if not math.isfinite(half):
        return Interval(estimate, 0.0, 1.0)
    spread = np.array([-half, half]) / (estimate * (1 - estimate))
    low, high = special.expit(special.logit(estimate) + spread)
    return Interval(estimate, float(low), float(high))


def roc_auc_difference(
    first: np.ndarray,
    second: np.ndarray,
    positive: np.ndarray,
    cluster: np.ndarray,
    *,
    confidence: float = 0.95,
) -> Interval:
    """Difference of the ROC-AUCs of two scores on the same rows, with a confidence interval.

    The areas are correlated because both scores are of the same images, so the interval of the
    difference is narrower than the two separate intervals suggest. For a single cluster it is [-1,
    1].

    Args:
        first: float ``(N,)``.
        second: float ``(N,)``.
        positive: bool ``(N,)``, True for positives; both kinds must occur.
        cluster: int ``(N,)``, the cluster of each row.
        confidence: confidence level of the interval.

    Returns:
        AUC of the first minus AUC of the second, in [-1, 1], with a Student's t interval.

    Raises:
        InputError: when one kind is missing, the lengths differ or a score is not finite.

    Source:
        DeLong et al. (1988) for paired areas, with Obuchowski's (1997) variance for clusters.
    """
    placements = _placements(first, positive) - _placements(second, positive)
    ids = np.unique(cluster, return_inverse=True)[1]
    half = _reach(placements, positive, ids, confidence)
    if not math.isfinite(half):
        return Interval(placements.area, -1.0, 1.0)
    return Interval(placements.area, placements.area - half, placements.area + half)


def tpr_at_fpr(scores: np.ndarray, positive: np.ndarray, fpr: float) -> float:
    """Largest true-positive rate among thresholds with a false-alarm rate of at most ``fpr``.

    Args:
        scores: float ``(N,)``.
        positive: bool ``(N,)``, True for positives; both kinds must occur.
        fpr: the highest false-alarm rate allowed, in [0, 1].

    Returns:
        In [0, 1].

    Raises:
        InputError: when one kind is missing, the lengths differ or a score is not finite.
    """
    return float(flagged_at_fpr(scores, positive, fpr)[positive].mean())


def flagged_at_fpr(scores: np.ndarray, positive: np.ndarray, fpr: float) -> np.ndarray:
    """The rows flagged by the lowest threshold with a false-alarm rate of at most ``fpr``.

    Args and errors are those of :func:`tpr_at_fpr`.

    Returns:
        bool ``(N,)``.
    """
    _check(scores, positive)
    false_alarms, _, thresholds = roc_curve(positive, scores, drop_intermediate=False)
    flagged: np.ndarray = scores >= thresholds[false_alarms <= fpr].min()
    return flagged


def _placements(scores: np.ndarray, positive: np.ndarray) -> _Placements:
    _check(scores, positive)
    positives, negatives = scores[positive], scores[~positive]
    ranks = stats.rankdata(scores)
    own_positive, own_negative = stats.rankdata(positives), stats.rankdata(negatives)
    return _Placements(
        above=(ranks[positive] - own_positive) / len(negatives),
        below=1 - (ranks[~positive] - own_negative) / len(positives),
    )


def _clusters(positive: np.ndarray, ids: np.ndarray) -> tuple[int, int]:
    """Number of clusters with a positive and number with a negative; clusters are 0, 1, ..."""
    with_positive, with_negative = (
        int(np.count_nonzero(np.bincount(ids[rows]))) for rows in (positive, ~positive)
    )
    return with_positive, with_negative


def _reach(
    placements: _Placements, positive: np.ndarray, ids: np.ndarray, confidence: float
) -> float:
    """Half the width of the interval, by Student's t over clusters; infinite for one cluster."""
    freedom = min(_clusters(positive, ids)) - 1
    if freedom < 1:
        return math.inf
    reach = stats.t.ppf((1 + confidence) / 2, freedom)
    return float(reach) * _standard_error(placements, positive, ids)


def _standard_error(placements: _Placements, positive: np.ndarray, ids: np.ndarray) -> float:
    """Standard error of an area or a difference of areas, for at least two clusters.

    Source:
        Obuchowski (1997), eq. 4-5.
    """
    clusters = int(ids.max()) + 1
    with_positive, with_negative = _clusters(positive, ids)
    above, below = (
        np.bincount(ids[rows], part - placements.area, clusters) / len(part)
        for rows, part in ((positive, placements.above), (~positive, placements.below))
    )
    variance = (
        _bessel(with_positive) * above @ above
        + _bessel(with_negative) * below @ below
        + _bessel(clusters) * 2 * above @ below
    )
    return math.sqrt(max(float(variance), 0.0))


def _check(scores: np.ndarray, positive: np.ndarray) -> None:
    if positive.dtype != bool or positive.shape != scores.shape:
        message = (
            f"expected one bool per score, shape {scores.shape}, got {positive.dtype} of shape "
            f"{positive.shape}; pass one bool per score"
        )
        raise InputError(message)
    if not np.isfinite(scores).all():
        message = "expected finite scores, got NaN or infinity; check how they were computed"
        raise InputError(message)
    if positive.all() or not positive.any():
        message = (
            f"expected positives and negatives, got {int(positive.sum())} and "
            f"{int((~positive).sum())}; an ROC curve needs both"
        )
        raise InputError(message)


def _bessel(clusters: int) -> float:
    """Bessel's correction for a variance between clusters."""
    return clusters / (clusters - 1)
