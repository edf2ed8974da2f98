"""What speaks for or against a claim: figures with intervals, held against a bound."""

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
    def known(self) -> bool:
        """Whether the figure could be measured."""
        return not math.isnan(self.found.estimate)

    @property
    def speaks(self) -> Side:
        """Whether the whole interval lies above the bound, below it, or neither."""
        return _side(self.found, self.bound)

    @property
    def blurred(self) -> bool:
        """Whether it is the spread of the classifiers that keeps it from being decided."""
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
        what: the name of the figure.
        intervals: one for each classifier.
        bound: what the figure is held against.
        comparisons: from how many figures this one is picked as the most striking.
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

    The classifiers share their test images, so more classifiers make the part of the images no
    smaller: its width is the root mean square of theirs. The part of the classifiers is Student's
    t interval of their mean. The two are added in quadrature.

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
    """The interval of the figure with its sign turned."""
    return Interval(-found.estimate, -found.high, -found.low)


def _side(found: Interval, bound: float) -> Side:
    if found.low > bound:
        return "for"
    return "against" if found.high < bound else "neither"
