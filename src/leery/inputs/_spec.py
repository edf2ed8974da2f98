"""What a detector knows of its inputs: shape, type, bounds, range and moments of the pixels."""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from leery._checks import Bounds, check_bound_values, check_images
from leery.errors import InputError, warn

__all__ = ["InputSpec", "Moments", "bounds_seen"]

_MOST_ELEMENTS = 2**28
"""A bound on one input, which keeps a stranger's file from asking for all the memory."""

_FAR = 2.0
"""Values this many times the span of the training images beyond their range are refused."""

_FAR_FROM_BOUNDS = 0.5
"""The same beyond known bounds."""

_ENOUGH = 20
"""The smallest set of images whose moments are compared with those of the training images."""


@dataclass
class Moments:
    """Range, sum and sum of squares of the pixels of images, gathered batch by batch."""

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, images: Tensor) -> None:
        """Count a batch."""
        low, high = torch.aminmax(images)
        values = images.detach() if images.is_floating_point() else images.float()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self.count += images.numel()
        variance, mean = torch.var_mean(values.float(), correction=0)
        self.total += float(mean) * images.numel()
        self.squares += (float(variance) + float(mean) ** 2) * images.numel()

    @property
    def mean(self) -> float:
        """The mean of all pixels."""
        return self.total / self.count

    @property
    def std(self) -> float:
        """The standard deviation of all pixels."""
        return math.sqrt(max(self.squares / self.count - self.mean**2, 0.0))


def bounds_seen(images: Tensor, moments: Moments) -> Bounds | None:
    """The bounds (0, 1) where the pixels of floating-point images lie in it; else None."""
    inside = images.is_floating_point() and moments.low >= 0 and moments.high <= 1
    return (0.0, 1.0) if inside else None


@dataclass(frozen=True)
class InputSpec:
    """The inputs of the training data.

    Attributes:
        shape: of one input.
        dtype: of the inputs.
        bounds: of the pixels: given, or (0, 1) where the training images lie in it; None where
            they are unknown, and for integers.
        low: the smallest training pixel.
        high: the largest.
        mean: of all training pixels.
        std: their standard deviation.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    bounds: Bounds | None
    low: float
    high: float
    mean: float
    std: float

    @classmethod
    def of(cls, example: Tensor, moments: Moments, bounds: Bounds | None) -> Self:
        """The spec of training images.

        Args:
            example: a batch of them.
            moments: of all of them.
            bounds: as the user gave them, or None.
        """
        bounds = bounds or bounds_seen(example, moments)
        shape = tuple(example.shape[1:])
        return cls(
            shape, example.dtype, bounds, moments.low, moments.high, moments.mean, moments.std
        )

    @property
    def are_images(self) -> bool:
        """Whether the inputs are pictures ``(channels, height, width)`` with known bounds."""
        return len(self.shape) == 3 and self.dtype.is_floating_point and self.bounds is not None  # noqa: PLR2004

    def check(self, images: Tensor) -> None:
        """Refuse inputs of another kind than the training images.

        Raises:
            InputError: when shape, type or range of values cannot be those of the same source.
        """
        check_images(images)
        if images.shape[1:] != self.shape or images.dtype != self.dtype:
            message = (
                f"expected inputs as in the fit, (N, {', '.join(map(str, self.shape))}) of "
                f"{self.dtype}, got {tuple(images.shape)} of {images.dtype}; convert them in the "
                "same way"
            )
            raise InputError(message)
        if self.dtype.is_floating_point:
            self._check_range(*(float(value) for value in torch.aminmax(images.detach())))

    def _check_range(self, low: float, high: float) -> None:
        known = self.bounds is not None
        least, most = (
            (self.low, self.high)
            if self.bounds is None
            else (float(min(_flat(self.bounds))), float(max(_flat(self.bounds))))
        )
        margin = (_FAR_FROM_BOUNDS if known else _FAR) * (most - least)
        if low < least - margin or high > most + margin:
            what = f"bounds {least:g}..{most:g}" if known else f"range {least:g}..{most:g}"
            message = (
                f"expected values on the scale of the fit, {what}, got {low:g}..{high:g}; scale "
                "the inputs in the same way as the training images"
            )
            raise InputError(message)

    def compare(self, moments: Moments, images: int, what: str) -> None:
        """Warn where a set of inputs is on another scale than the training images.

        Args:
            moments: of the set.
            images: how many there are; few tell nothing.
            what: what they are called in the warning.
        """
        if images < _ENOUGH or not self.dtype.is_floating_point or not self.std > 0:
            return
        ratio = moments.std / self.std
        # Normalised values lie on both sides of zero, plain pixels on one.
        plain = self.low < -0.1 * (self.high - self.low) and moments.low >= 0
        alike = 1 / 3 <= ratio <= 3 and abs(moments.mean - self.mean) <= 2 * self.std  # noqa: PLR2004
        if plain or not alike:
            message = (
                f"the {what} may be on another scale than the training images: range "
                f"{moments.low:g}..{moments.high:g}, mean {moments.mean:.3g} and standard "
                f"deviation {moments.std:.3g}, against {self.low:g}..{self.high:g}, "
                f"{self.mean:.3g} and {self.std:.3g}; check that both are normalised alike"
            )
            warn(message)

    def facts(self) -> dict[str, Any]:
        """The spec in types that JSON has."""
        return {
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "bounds": self.bounds,
            "low": self.low,
            "high": self.high,
            "mean": self.mean,
            "std": self.std,
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """The inverse of :meth:`facts`.

        Raises:
            InputError: when there can be no such inputs.
        """
        shape, dtype = facts["shape"], getattr(torch, facts["dtype"], None)
        sizes = all(type(size) is int and size > 0 for size in shape)
        if (
            not isinstance(dtype, torch.dtype)
            or dtype.is_complex
            or not sizes
            or math.prod(shape) > _MOST_ELEMENTS
        ):
            message = f"no inputs of shape {shape} and type {facts['dtype']!r}"
            raise InputError(message)
        numbers = [float(facts[name]) for name in ("low", "high", "mean", "std")]
        if not all(map(math.isfinite, numbers)):
            message = f"no inputs with range and moments {numbers}"
            raise InputError(message)
        bounds = None if facts["bounds"] is None else check_bound_values(facts["bounds"])
        return cls(tuple(shape), dtype, bounds, *numbers)

    def __str__(self) -> str:
        """One line for people."""
        shown = "unknown" if self.bounds is None else str(self.bounds)
        return (
            f"{self.shape} of {str(self.dtype).removeprefix('torch.')}, bounds {shown}, training "
            f"range {self.low:g}..{self.high:g}"
        )


def _flat(bounds: Bounds) -> list[float]:
    return [
        float(value) for pair in bounds for value in (pair if isinstance(pair, tuple) else (pair,))
    ]
