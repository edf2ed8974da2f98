"""Gaussian noise: the control that a detector must not mistake for an attack."""

import math

import torch
from torch import Tensor

from leery._checks import Bounds, check_bound_values, check_bounds, check_images, clamp
from leery.errors import InputError

__all__ = ["gaussian_noise"]


def gaussian_noise(
    images: Tensor, sigma: float, *, seed: int = 0, bounds: Bounds = (0.0, 1.0)
) -> Tensor:
    """The noisy version of each image: Gaussian noise on every pixel, clipped to the bounds.

    Args:
        images: float ``(N, ...)``.
        sigma: the standard deviation before clipping, in the units of the images.
        seed: random seed.
        bounds: lowest and highest pixel value, or a pair per channel.

    Returns:
        Like ``images``.

    Raises:
        InputError: when sigma is negative or not finite, or the images do not fit.

    Source:
        Tuna, Catak, Eskil (2020), section 5.3, with sigma equal to the epsilon of the attack under
        comparison.
    """
    check_images(images, floating=True)
    bounds = check_bound_values(bounds)
    check_bounds(images, bounds)
    if not (math.isfinite(sigma) and sigma >= 0):
        message = f"expected a finite sigma of at least 0, got {sigma}; correct it"
        raise InputError(message)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype, device="cpu")
    return clamp(images.detach() + sigma * noise.to(images.device), bounds)
