"""Intervals of shares, means and their differences, for claims to be decided by."""

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
    """A share of independent trials with its interval, which stays inside [0, 1].

    Args:
        hits: how many of the trials count, at most ``trials``.
        trials: at least 1.
        confidence: of the interval.

    Raises:
        InputError: when the counts are impossible.

    Source:
        Wilson (1927), as scipy computes it.

    Example:
        >>> share_interval(100, 100).low
        0.963...
    """
    if not 0 <= hits <= trials or trials < 1:
        message = f"expected some trials and no more hits, got {hits} of {trials}; correct them"
        raise InputError(message)
    found = stats.binomtest(int(hits), int(trials)).proportion_ci(confidence, method="wilson")
    return Interval(hits / trials, float(found.low), float(found.high))


def share_difference(first: tuple[int, int], second: tuple[int, int]) -> Interval:
    """How much larger one share is than another of other, independent trials, at 95 %.

    Args:
        first: hits and trials.
        second: hits and trials.

    Returns:
        The first share minus the second, in [-1, 1].

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
    """How much larger one mean is than another of other, independent samples.

    Args:
        first: mean, standard deviation (divided by n - 1) and sample size, at least 2.
        second: likewise.
        confidence: of the interval.

    Returns:
        The first mean minus the second.

    Raises:
        InputError: when a sample is too small to have a spread.

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
