"""How surprising a value is among reference values: minus the log of a smoothed p-value."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from leery.errors import InputError

__all__ = ["TAIL", "Evidence", "check_reference"]

TAIL = 0.05
"""The share of reference values, the largest ones, where p-values follow an exponential."""


def check_reference(reference: Tensor, least: int) -> None:
    """Refuse a reference ``(N, M)`` that is too small or whose columns are not sorted.

    Raises:
        InputError: then.
    """
    if len(reference) < least or not bool((reference.diff(dim=0) >= 0).all()):
        message = (
            f"expected a sorted reference of at least {least} images in the combiner, got another; "
            "fit the detector again"
        )
        raise InputError(message)


@dataclass(frozen=True)
class _Curve:
    """Minus the log of the share of reference values that are at least as large, interpolated.

    Attributes:
        knots: float64 ``(K,)``, distinct reference values in ascending order.
        heights: float64 ``(K,)``, the evidence there.
        slope: of the last part.
    """

    knots: Tensor
    heights: Tensor
    slope: float

    @classmethod
    def of(cls, ordered: Tensor) -> Self:
        """The curve of sorted reference values."""
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
        # The largest values are equal: whatever lies clearly beyond them is beyond all.
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
    """The evidence of a metric: of large values, or of large and of small ones."""

    above: _Curve
    below: _Curve | None

    @classmethod
    def of(cls, ordered: Tensor, *, two_sided: bool) -> Self:
        """The evidence by sorted reference values."""
        return cls(_Curve.of(ordered), _Curve.of(-ordered.flip(0)) if two_sided else None)

    def __call__(self, values: Tensor) -> Tensor:
        """The evidence of each value, float64 ``(N,)``, nats, at least 0."""
        found = self.above(values)
        if self.below is None:
            return found
        return (torch.maximum(found, self.below(-values)) - math.log(2)).clamp_min(0)
