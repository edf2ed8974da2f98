"""What speaks for or against a claim: figures with intervals, held against a bound."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
from scipy import stats

from leery.evaluation import Interval, quantile

__all__ = ["UNKNOWN", "Evidence", "Side", "evidence", "negated", "pooled", "widened"]

Side = Literal["for", "against", "neither"]

UNKNOWN = Interval(math.nan, math.nan, math.nan)
"""Of a figure that could not be measured, such as a mean over no image."""


@dataclass(frozen=True)
class Evidence:
    """A measured figure that a claim says is above a bound.

    Attributes:
        where: the dataset, and the condition if there is one.
        what: the name of the figure.
        found: the figure with its 95% interval, over images and, where there are several,
            classifiers; NaN where it could not be measured.
        images_only: the same with the interval over images only.
        bound: what it is held against.
    """

    where: str
    what: str
    found: Interval
    images_only: Interval
    bound: float = 0.0

    @property
    def speaks(self) -> Side:
        """Whether the whole interval lies above the bound, below it, or neither."""
        return _side(self.found, self.bound)

    @property
    def blurred(self) -> bool:
        """Whether it is the spread of the classifiers that keeps it from being decided."""
        return self.speaks == "neither" and _side(self.images_only, self.bound) != "neither"


def evidence(
    where: str, what: str, intervals: Sequence[Interval], *, bound: float = 0.0
) -> Evidence:
    """Evidence from 95% intervals over images, one for each classifier; none is unknown."""
    if not intervals:
        return Evidence(where, what, UNKNOWN, UNKNOWN, bound)
    middle = np.mean([astuple(interval) for interval in intervals], axis=0)
    return Evidence(where, what, pooled(intervals), Interval(*middle.tolist()), bound)


def pooled(intervals: Sequence[Interval]) -> Interval:
    """The mean over classifiers, with an interval over classifiers and images.

    The classifiers share their test images, so more classifiers make the part of the images no
    smaller: its width is the root mean square of theirs. The part of the classifiers is Student's
    t interval of their mean. The two are added in quadrature.

    Args:
        intervals: 95% intervals over images, one for each classifier; at least one.

    Example:
        >>> pooled([Interval(0.5, 0.4, 0.6)])
        Interval(estimate=0.5, low=0.4, high=0.6)
        >>> pooled([Interval(0.5, 0.5, 0.5), Interval(0.6, 0.6, 0.6)]).low
        -0.085...
    """
    if len(intervals) == 1:
        return intervals[0]
    estimates, lows, highs = np.array([astuple(interval) for interval in intervals]).T
    mean = float(estimates.mean())
    error = estimates.std(ddof=1) / math.sqrt(len(estimates))
    half = float(stats.t.ppf(0.975, len(estimates) - 1) * error)
    below, above = (math.sqrt(np.mean((estimates - ends) ** 2)) for ends in (lows, highs))
    return Interval(mean, mean - math.hypot(half, below), mean + math.hypot(half, above))


def widened(found: Interval, comparisons: int) -> Interval:
    """A 95% interval made to hold for the most striking of so many comparisons (Bonferroni)."""
    factor = quantile(1 - 0.05 / comparisons) / quantile(0.95)
    return Interval(
        found.estimate,
        found.estimate - factor * (found.estimate - found.low),
        found.estimate + factor * (found.high - found.estimate),
    )


def negated(found: Interval) -> Interval:
    """The interval of the figure with its sign turned."""
    return Interval(-found.estimate, -found.high, -found.low)


def _side(found: Interval, bound: float) -> Side:
    if found.low > bound:
        return "for"
    return "against" if found.high < bound else "neither"
