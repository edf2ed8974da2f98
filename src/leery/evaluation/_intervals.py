"""Confidence intervals of proportions, means and their differences."""

import math
from dataclasses import dataclass

from scipy import stats

from leery.errors import InputError

__all__ = ["Interval", "mean_difference", "share_difference", "share_interval"]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float


def share_interval(hits: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Proportion of hits in independent trials, with a confidence interval inside [0, 1].

    Args:
        hits: number of successful trials, at most ``trials``.
        trials: number of trials, at least 1.
        confidence: confidence level of the interval.

    Raises:
        InputError: when the counts are impossible.

    Source:
        Wilson (1927), as scipy computes it.

    Example:
        >>> share_interval(100, 100).low
        0.963...
    """
    if not 0 <= hits <= trials or trials < 1:
        message = f"expected 0 <= hits <= trials, trials > 0, got {hits} of {trials}; correct them"
        raise InputError(message)
    found = stats.binomtest(int(hits), int(trials)).proportion_ci(confidence, method="wilson")
    return Interval(hits / trials, float(found.low), float(found.high))


def share_difference(first: tuple[int, int], second: tuple[int, int]) -> Interval:
    """Difference of two independent proportions, with a 95 % confidence interval.

    Args:
        first: hits and trials.
        second: hits and trials.

    Returns:
        The first proportion minus the second, in [-1, 1].

    Raises:
        InputError: when the counts are impossible.

    Source:
        Newcombe (1998), "Interval estimation for the difference between independent
        proportions", Statistics in Medicine 17, method 10.
    """
    one, two = share_interval(*first), share_interval(*second)
    difference = one.estimate - two.estimate
    return Interval(
        difference,
        difference - math.hypot(one.estimate - one.low, two.high - two.estimate),
        difference + math.hypot(one.high - one.estimate, two.estimate - two.low),
    )


def mean_difference(
    first: tuple[float, float, int], second: tuple[float, float, int], *, confidence: float = 0.95
) -> Interval:
    """Difference of the means of two independent samples, with a confidence interval.

    Args:
        first: mean, standard deviation (divided by n - 1) and sample size, at least 2.
        second: mean, standard deviation and sample size of the second sample.
        confidence: confidence level of the interval.

    Returns:
        The first mean minus the second.

    Raises:
        InputError: when a sample has fewer than two elements.

    Source:
        Welch (1947): unequal variances, Student's t with Satterthwaite's degrees of freedom.
    """
    if min(first[2], second[2]) < 2:  # noqa: PLR2004 - a spread needs two
        message = f"expected samples of at least 2, got {first[2]} and {second[2]}; take more"
        raise InputError(message)
    parts = [deviation**2 / count for _, deviation, count in (first, second)]
    difference, error = first[0] - second[0], math.sqrt(sum(parts))
    if error == 0:
        return Interval(difference, difference, difference)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (count - 1) for part, count in zip(parts, (first[2], second[2]), strict=True)
    )
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return Interval(difference, difference - half, difference + half)
