"""Evidence of a metric against a reference sample: minus the log of a smoothed p-value."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from leery.errors import InputError

__all__ = ["TAIL", "Evidence", "check_reference"]

TAIL = 0.05
"""Fraction of largest reference values over which p-values follow a fitted exponential tail."""


def check_reference(reference: Tensor, least: int) -> None:
    """Raise if a reference ``(N, M)`` is too small or its columns are not sorted.

    Raises:
        InputError: when it is too small or not sorted.
    """
    if len(reference) < least or not bool((reference.diff(dim=0) >= 0).all()):
        message = (
            f"expected a sorted reference of {least} images or more, got a short or unsorted one; "
            "fit the detector again"
        )
        raise InputError(message)


@dataclass(frozen=True)
class _Curve:
    """Minus the log of the fraction of reference values at least as large, interpolated.

    Attributes:
        knots: float64 ``(K,)``, distinct reference values in ascending order.
        heights: float64 ``(K,)``, the evidence at the knots.
        slope: slope of the evidence beyond the last knot.
    """

    knots: Tensor
    heights: Tensor
    slope: float

    @classmethod
    def of(cls, ordered: Tensor) -> Self:
        """Fit the curve to sorted reference values."""
        count = len(ordered)
        tail = max(2, math.ceil(TAIL * count))
        start = ordered[-tail - 1]
        excess = float((ordered[-tail:] - start).mean())
        knots = ordered.unique()
        reached = count - torch.searchsorted(ordered, knots, side="left")
        heights = -((1 + reached).double() / (count + 1)).log()
        if excess > 0:
            below = knots <= start
            return cls(knots[below], heights[below], 1 / excess)
        # No tail to fit: what clearly exceeds the equal largest values exceeds the whole reference.
        spread = float(knots[-1] - knots[0]) or max(1.0, float(knots[-1].abs()))
        beyond = knots[-1:] + spread / 100
        highest = heights.new_tensor([math.log(count + 1)])
        return cls(torch.cat([knots, beyond]), torch.cat([heights, highest]), 1 / spread)

    def __call__(self, values: Tensor) -> Tensor:
        """The evidence of each value, float64 ``(N,)``, at least 0."""
        knots, heights = self.knots.to(values.device), self.heights.to(values.device)
        upper = torch.searchsorted(knots, values.detach().contiguous()).clamp(1, len(knots) - 1)
        if len(knots) == 1:
            inside = heights[0].expand_as(values)
        else:
            left, right = knots[upper - 1], knots[upper]
            share = ((values - left) / (right - left)).clamp(0, 1)
            inside = heights[upper - 1] + share * (heights[upper] - heights[upper - 1])
        return inside + self.slope * (values - knots[-1]).clamp_min(0)


@dataclass(frozen=True)
class Evidence:
    """One-sided or two-sided evidence of a metric."""

    above: _Curve
    below: _Curve | None

    @classmethod
    def of(cls, ordered: Tensor, *, two_sided: bool) -> Self:
        """Fit the evidence to sorted reference values."""
        return cls(_Curve.of(ordered), _Curve.of(-ordered.flip(0)) if two_sided else None)

    def __call__(self, values: Tensor) -> Tensor:
        """The evidence of each value, float64 ``(N,)``, nats, at least 0."""
        found = self.above(values)
        if self.below is None:
            return found
        return (torch.maximum(found, self.below(-values)) - math.log(2)).clamp_min(0)
