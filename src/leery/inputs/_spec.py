"""Specification of inputs: shape, dtype, bounds, range and moments of the pixels."""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from leery._checks import Bounds, check_bound_values, check_images
from leery.errors import InputError, warn

__all__ = ["InputSpec", "Moments", "bounds_seen"]

_MAX_ELEMENTS = 2**28
"""Maximum number of elements of one input, so that an untrusted file cannot exhaust memory."""

_FAR = 2.0
"""Tolerated excess over the range of the training images, as a multiple of its span."""

_FAR_FROM_BOUNDS = 0.5
"""Tolerated excess over known bounds, as a multiple of their span."""

_ENOUGH = 20
"""Smallest number of images whose moments are compared with those of the training images."""


@dataclass
class Moments:
    """Range, sum and sum of squares of the pixels of images, gathered batch by batch."""

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, images: Tensor) -> None:
        """Add a batch of images."""
        low, high = torch.aminmax(images)
        values = images.detach() if images.is_floating_point() else images.float()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self.count += images.numel()
        variance, mean = torch.var_mean(values.float(), correction=0)
        self.total += float(mean) * images.numel()
        self.squares += (float(variance) + float(mean) ** 2) * images.numel()

    def merge(self, other: Self) -> None:
        """Add the moments of other images."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count
        self.total += other.total
        self.squares += other.squares

    @property
    def mean(self) -> float:
        """The mean of all pixels."""
        return self.total / self.count

    @property
    def std(self) -> float:
        """The standard deviation of all pixels."""
        return math.sqrt(max(self.squares / self.count - self.mean**2, 0.0))


def bounds_seen(images: Tensor, moments: Moments) -> Bounds | None:
    """The bounds (0, 1) if the images are floating-point and lie within them, else None."""
    inside = images.is_floating_point() and moments.low >= 0 and moments.high <= 1
    return (0.0, 1.0) if inside else None


@dataclass(frozen=True)
class InputSpec:
    """Specification of the inputs that a detector was fitted on.

    Attributes:
        shape: shape of one input.
        dtype: dtype of the inputs.
        bounds: pixel bounds: those given, or (0, 1) if the training images lie within it; None if
            unknown and for integers.
        low: the smallest training pixel.
        high: the largest training pixel.
        mean: mean of all training pixels.
        std: standard deviation of all training pixels.
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
        """Make the specification of training images.

        Args:
            example: a batch of training images.
            moments: moments of all training images.
            bounds: pixel bounds that the user gave, or None.
        """
        bounds = bounds or bounds_seen(example, moments)
        shape = tuple(example.shape[1:])
        return cls(
            shape, example.dtype, bounds, moments.low, moments.high, moments.mean, moments.std
        )

    @property
    def are_images(self) -> bool:
        """True for floating-point images ``(channels, height, width)`` with known bounds."""
        return len(self.shape) == 3 and self.dtype.is_floating_point and self.bounds is not None  # noqa: PLR2004

    def check(self, images: Tensor) -> None:
        """Raise if inputs differ from the training images in shape, dtype or scale.

        Raises:
            InputError: when the shape or dtype differs, or the range is implausible.
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
        """Warn if a set of inputs seems to be on another scale than the training images.

        Args:
            moments: moments of the set.
            images: number of images in the set; fewer than 20 are not compared.
            what: name of the set in the warning.
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
        """The specification as JSON-serialisable values."""
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
            InputError: when the specification is invalid.
        """
        shape, dtype = facts["shape"], getattr(torch, facts["dtype"], None)
        sizes = all(type(size) is int and size > 0 for size in shape)
        if (
            not isinstance(dtype, torch.dtype)
            or dtype.is_complex
            or not sizes
            or math.prod(shape) > _MAX_ELEMENTS
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
        """One-line summary."""
        shown = "unknown" if self.bounds is None else str(self.bounds)
        return (
            f"{self.shape} of {str(self.dtype).removeprefix('torch.')}, bounds {shown}, training "
            f"range {self.low:g}..{self.high:g}"
        )


def _flat(bounds: Bounds) -> list[float]:
    return [
        float(value) for pair in bounds for value in (pair if isinstance(pair, tuple) else (pair,))
    ]
