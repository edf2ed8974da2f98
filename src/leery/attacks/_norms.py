"""Norms for the gradient loop: each supplies a random start, a direction and a projection.

All tensors are batches ``(N, ...)``; the norm is taken per image.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

__all__ = ["NORMS", "Norm", "NormName"]

NormName = Literal["linf", "l2"]


class Norm(Protocol):
    """Geometry of the ball to which perturbations are confined."""

    def start(self, images: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
        """A uniform draw from the ball of radius epsilon, in the images' shape, on the CPU."""

    def direction(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent, of norm one; zero where the gradient is zero."""

    def project(self, delta: Tensor, epsilon: float) -> Tensor:
        """The nearest perturbation inside the ball."""


class _Linf:
    def start(self, images: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
        unit = torch.rand(images.shape, generator=generator, dtype=images.dtype, device="cpu")
        return unit.mul_(2 * epsilon).sub_(epsilon)

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, delta: Tensor, epsilon: float) -> Tensor:
        return delta.clamp(-epsilon, epsilon)


class _L2:
    def start(self, images: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
        # A Gaussian direction with radius u^(1/d) is uniform in the d-dimensional ball.
        direction = torch.randn(images.shape, generator=generator, dtype=images.dtype, device="cpu")
        uniform = torch.rand(len(images), generator=generator, dtype=images.dtype, device="cpu")
        radius = epsilon * uniform.pow(1 / images[0].numel())
        return self.direction(direction) * _per_image(radius, images)

    def direction(self, gradient: Tensor) -> Tensor:
        # In float64, because squares of small float32 elements underflow to zero.
        length = gradient.double().flatten(1).norm(dim=1).to(gradient.dtype)
        return gradient / _per_image(length.clamp_min(torch.finfo(length.dtype).tiny), gradient)

    def project(self, delta: Tensor, epsilon: float) -> Tensor:
        length = delta.flatten(1).norm(dim=1).clamp_min(torch.finfo(delta.dtype).tiny)
        return delta * _per_image((epsilon / length).clamp_max(1.0), delta)


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """``(N,)`` shaped to broadcast over a batch ``(N, ...)``."""
    return values.view(-1, *(1,) * (like.ndim - 1))


NORMS: Mapping[str, Norm] = {"linf": _Linf(), "l2": _L2()}
"""Norms by name."""
