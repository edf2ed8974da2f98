"""Evidence for or against a claim: estimates with intervals, compared with a bound."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
from scipy import stats

from leery.evaluation import Interval

__all__ = ["UNKNOWN", "Evidence", "Side", "evidence", "negated", "pooled"]

Side = Literal["for", "against", "neither"]

UNKNOWN = Interval(math.nan, math.nan, math.nan)
"""Interval of an estimate that could not be measured, such as a mean over no image."""


@dataclass(frozen=True)
class Evidence:
    """A measured estimate that, according to a claim, is above a bound.

    Attributes:
        where: the dataset, and the condition if there is one.
        what: name of the estimate.
        found: the estimate with its 95% interval, over images and, if there are several,
            classifiers; NaN if it could not be measured.
        images_only: the estimate with its 95% interval over images only.
        bound: bound that the estimate is compared with.
    """

    where: str
    what: str
    found: Interval
    images_only: Interval
    bound: float = 0.0

    @property
    def known(self) -> bool:
        """True if the estimate could be measured."""
        return not math.isnan(self.found.estimate)

    @property
    def speaks(self) -> Side:
        """Side of the bound on which the whole interval lies: "for" above, "against" below."""
        return _side(self.found, self.bound)

    @property
    def blurred(self) -> bool:
        """True if only the spread of the classifiers leaves the comparison undecided."""
        return self.speaks == "neither" and _side(self.images_only, self.bound) != "neither"


def evidence(
    where: str,
    what: str,
    intervals: Sequence[Interval],
    *,
    bound: float = 0.0,
    comparisons: int = 1,
) -> Evidence:
    """Evidence from 95% intervals over images, one for each classifier; unknown ones are left out.

    Args:
        where: the dataset, and the condition if there is one.
        what: name of the estimate.
        intervals: one for each classifier.
        bound: bound that the estimate is compared with.
        comparisons: number of estimates from which this one is selected as the most extreme.
    """
    known = [interval for interval in intervals if not math.isnan(interval.estimate)]
    if not known:
        return Evidence(where, what, UNKNOWN, UNKNOWN, bound)
    if len(known) < len(intervals):
        what = f"{what} ({len(known)} of {len(intervals)} classifiers)"
        intervals = known
    middle = Interval(*np.mean([astuple(interval) for interval in intervals], axis=0).tolist())
    return Evidence(
        where,
        what,
        found=pooled(intervals, comparisons),
        images_only=pooled([middle], comparisons),
        bound=bound,
    )


def pooled(intervals: Sequence[Interval], comparisons: int = 1) -> Interval:
    """The mean over classifiers, with an interval over classifiers and images.

    The classifiers share their test images, so more classifiers do not reduce the uncertainty over
    images: its half-width is the root mean square of theirs. The uncertainty over classifiers is
    Student's t interval of their mean. The two half-widths are added in quadrature.

    Args:
        intervals: 95% intervals over images, one for each classifier; at least one.
        comparisons: number of comparisons for which the intervals hold at once, by
            Bonferroni's correction.

    Example:
        >>> pooled([Interval(0.5, 0.4, 0.6)])
        Interval(estimate=0.5, low=0.4, high=0.6)
        >>> pooled([Interval(0.5, 0.5, 0.5), Interval(0.6, 0.6, 0.6)]).low
        -0.085...
    """
    if len(intervals) == comparisons == 1:
        return intervals[0]
    confidence = 1 - 0.05 / comparisons
    wider = float(stats.norm.ppf((1 + confidence) / 2) / stats.norm.ppf(0.975))
    estimates, lows, highs = np.array([astuple(interval) for interval in intervals]).T
    mean, count = float(estimates.mean()), len(estimates)
    half = 0.0
    if count > 1:
        reach = stats.t.ppf((1 + confidence) / 2, count - 1)
        half = float(reach * estimates.std(ddof=1) / math.sqrt(count))
    below, above = (wider * math.sqrt(np.mean((estimates - ends) ** 2)) for ends in (lows, highs))
    return Interval(mean, mean - math.hypot(half, below), mean + math.hypot(half, above))


def negated(found: Interval) -> Interval:
    """The interval of the negated estimate."""
    return Interval(-found.estimate, -found.high, -found.low)


def _side(found: Interval, bound: float) -> Side:
    if found.low > bound:
        return "for"
    return "against" if found.high < bound else "neither"
