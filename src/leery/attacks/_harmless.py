"""Harmless changes of images, which a detector must not confuse with an attack."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from leery._checks import Bounds, bounds_like, clamp

__all__ = ["HARMLESS", "Harmless"]

Harmless = Callable[[Tensor, int, Bounds], Tensor]
"""Takes images ``(N, C, H, W)``, a seed and the bounds; returns images of the same shape."""


def _noise(images: Tensor, seed: int, bounds: Bounds) -> Tensor:
    """Gaussian noise whose standard deviation is 5 % of the range of the pixels."""
    low, high = bounds_like(bounds, images)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype, device="cpu")
    return clamp(images + 0.05 * (high - low) * drawn.to(images.device), bounds)


def _contrast(images: Tensor, _seed: int, bounds: Bounds) -> Tensor:
    """Pixels drawn 10 % of the way to the middle of their range."""
    low, high = bounds_like(bounds, images)
    return images + 0.1 * ((low + high) / 2 - images)


HARMLESS: Mapping[str, Harmless] = {"noise": _noise, "contrast": _contrast}
"""The changes that calibration takes into account for images unless others are named."""
