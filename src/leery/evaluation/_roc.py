"""ROC figures, with an interval that knows that twins belong together."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special, stats
from sklearn.metrics import roc_curve

from leery.errors import InputError

__all__ = ["Interval", "roc_auc_interval", "tpr_at_fpr"]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float


def roc_auc_interval(
    scores: np.ndarray, positive: np.ndarray, cluster: np.ndarray, *, confidence: float = 0.95
) -> Interval:
    """ROC-AUC with an interval for rows that come in clusters, such as an image and its twins.

    The area is the probability that a positive outscores a negative, ties counting half.
    The variance is Obuchowski's; the interval is symmetric on the log-odds scale, so that it
    stays inside [0, 1]. An AUC of exactly 0 or 1 has no such scale: its interval is the point.
    One cluster alone says nothing of the spread: the interval is then [0, 1].

    Args:
        scores: float ``(N,)``.
        positive: bool ``(N,)``; both truths must occur.
        cluster: int ``(N,)``, which rows belong together.
        confidence: of the interval.

    Raises:
        InputError: when one truth is missing, the lengths differ or a score is not finite.

    Source:
        Obuchowski (1997), "Nonparametric analysis of clustered ROC curve data", Biometrics 53,
        eq. 4-5, built on the structural components of DeLong et al. (1988). Departure: the
        interval on the log-odds scale (Pepe 2003, section 5.2.4).
    """
    of_positives, of_negatives = _placements(scores, positive)
    estimate = float(of_positives.mean())
    clusters, ids = np.unique(cluster, return_inverse=True)
    occupied = [len(np.unique(ids[rows])) for rows in (positive, ~positive)]
    if min(occupied) < 2:  # noqa: PLR2004 - a spread needs two
        return Interval(estimate, 0.0, 1.0)
    if estimate in (0.0, 1.0):
        return Interval(estimate, estimate, estimate)
    n, m = len(of_positives), len(of_negatives)
    above = np.bincount(ids[positive], of_positives - estimate, len(clusters)) / n
    below = np.bincount(ids[~positive], of_negatives - estimate, len(clusters)) / m
    variance = (
        _bessel(occupied[0]) * above @ above
        + _bessel(occupied[1]) * below @ below
        + _bessel(len(clusters)) * 2 * above @ below
    )
    half = stats.norm.ppf((1 + confidence) / 2) * math.sqrt(max(float(variance), 0.0))
    spread = np.array([-half, half]) / (estimate * (1 - estimate))
    low, high = special.expit(special.logit(estimate) + spread)
    return Interval(estimate, float(low), float(high))


def tpr_at_fpr(scores: np.ndarray, positive: np.ndarray, fpr: float) -> float:
    """The largest share of positives found by a threshold with at most that false-alarm rate.

    Args:
        scores: float ``(N,)``.
        positive: bool ``(N,)``; both truths must occur.
        fpr: the highest false-alarm rate allowed, in [0, 1].

    Returns:
        In [0, 1].

    Raises:
        InputError: when one truth is missing, the lengths differ or a score is not finite.
    """
    _check(scores, positive)
    false_alarms, found, _ = roc_curve(positive, scores, drop_intermediate=False)
    return float(found[false_alarms <= fpr].max())


def _placements(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each positive the share of negatives below it, for each negative of positives above."""
    _check(scores, positive)
    positives, negatives = scores[positive], scores[~positive]
    ranks = stats.rankdata(scores)
    own_positive, own_negative = stats.rankdata(positives), stats.rankdata(negatives)
    of_positives = (ranks[positive] - own_positive) / len(negatives)
    of_negatives = 1 - (ranks[~positive] - own_negative) / len(positives)
    return of_positives, of_negatives


def _check(scores: np.ndarray, positive: np.ndarray) -> None:
    if positive.dtype != bool or positive.shape != scores.shape:
        message = (
            f"expected one bool a score, shape {scores.shape}, got {positive.dtype} of shape "
            f"{positive.shape}; compare the labels with the positive one"
        )
        raise InputError(message)
    if not np.isfinite(scores).all():
        message = "expected finite scores, got NaN or infinity; find out where they come from"
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
