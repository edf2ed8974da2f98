"""Benign corruptions of images, which a detector must not mistake for an attack."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leery._checks import Bounds, bounds_like, check_images, clamp
from leery.errors import InputError

__all__ = ["CORRUPTIONS", "HARMLESS", "Corruption", "Harmless", "check_harmless"]

Harmless = Callable[[Tensor, int, Bounds], Tensor]
"""Function of images ``(N, C, H, W)``, a seed and bounds that returns images of the same shape."""


@dataclass(frozen=True)
class Corruption:
    """A common image corruption with its published parameters.

    Args:
        name: a key of :data:`CORRUPTIONS`.
        severity: from 1 (mild) to 5 (severe).

    Raises:
        InputError: when there is no such corruption or severity.

    Source:
        Hendrycks and Dietterich (2019), arXiv:1903.12261, with the parameters of CIFAR-10-C: noise,
        blur, brightness, contrast. Mu and Gilmer (2019), arXiv:1906.02337, MNIST-C: offset (there
        brightness), rotation, translation, scale. Departures: lengths in pixels of a 28-pixel image
        are scaled to the width, pixels from outside the image repeat its border, and the blur
        kernel is truncated at three standard deviations.
    """

    name: str
    severity: int = 1

    def __post_init__(self) -> None:
        """Raise if the corruption or the severity is unknown."""
        if self.name not in _MAKERS or self.severity not in range(1, 6):
            message = (
                f"expected one of the corruptions {', '.join(_MAKERS)}, severity 1 to 5, got "
                f"{self.name!r}, severity {self.severity!r}; correct it"
            )
            raise InputError(message)

    def __call__(self, images: Tensor, seed: int, bounds: Bounds) -> Tensor:
        """Corrupted images.

        Args:
            images: float ``(N, channels, height, width)`` within the bounds.
            seed: random seed.
            bounds: lowest and highest pixel value, or a pair per channel.

        Returns:
            Like ``images``, within the bounds.

        Raises:
            InputError: when the images do not have that shape or type.
        """
        check_images(images, floating=True)
        if images.ndim != 4:  # noqa: PLR2004 - images
            message = (
                f"expected images (N, channels, height, width), got {tuple(images.shape)}; leave "
                "the corruption out"
            )
            raise InputError(message)
        low, high = bounds_like(bounds, images)
        generator = torch.Generator().manual_seed(seed)
        make, levels = _MAKERS[self.name]
        made = make((images - low) / (high - low), generator, levels[self.severity - 1])
        return clamp(low + made.clamp(0, 1) * (high - low), bounds)


def _gaussian_noise(images: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    return images + sigma * torch.randn(images.shape, generator=generator).to(images)


def _shot_noise(images: Tensor, generator: torch.Generator, photons: float) -> Tensor:
    expected = images.clamp(0, 1).cpu() * photons
    return (torch.poisson(expected, generator) / photons).to(images)


def _impulse_noise(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    drawn = torch.rand(images.shape, generator=generator).to(images)
    salted = torch.where(drawn > 1 - share / 2, torch.ones_like(images), images)
    return torch.where(drawn < share / 2, torch.zeros_like(images), salted)


def _blur(images: Tensor, _generator: torch.Generator, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1).to(images)
    weights = (-offsets.square() / (2 * sigma**2)).exp()
    weights = weights / weights.sum()
    channels = images.shape[1]
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        kernel = weights.view(shape).expand(channels, *(-1,) * 3)
        padded = functional.conv2d(padded, kernel, groups=channels)
    return padded


def _brightness(images: Tensor, _generator: torch.Generator, more: float) -> Tensor:
    """Raise the HSV value (largest channel) of each pixel; keep hue and saturation."""
    value = images.amax(1, keepdim=True)
    raised = (value + more).clamp_max(1)
    colour = torch.where(value > 0, images / value.clamp_min(1e-6), torch.ones_like(images))
    return colour * raised


def _contrast(images: Tensor, _generator: torch.Generator, kept: float) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return mean + kept * (images - mean)


def _offset(images: Tensor, _generator: torch.Generator, more: float) -> Tensor:
    return images + more


def _signs(images: Tensor, generator: torch.Generator) -> Tensor:
    """One sign per image."""
    return (2 * torch.randint(0, 2, (len(images),), generator=generator) - 1).to(images)


def _rotation(images: Tensor, generator: torch.Generator, radians: float) -> Tensor:
    angle = radians * _signs(images, generator)
    zero = torch.zeros_like(angle)
    cos, sin = angle.cos(), angle.sin()
    return _warped(images, [[cos, -sin, zero], [sin, cos, zero]])


def _translation(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    # Coordinates run from -1 to 1.
    right, down = (2 * share * _signs(images, generator) for _ in range(2))
    one, zero = torch.ones_like(right), torch.zeros_like(right)
    return _warped(images, [[one, zero, right], [zero, one, down]])


def _scale(images: Tensor, _generator: torch.Generator, size: float) -> Tensor:
    inverse = torch.full((len(images),), 1 / size).to(images)
    zero = torch.zeros_like(inverse)
    return _warped(images, [[inverse, zero, zero], [zero, inverse, zero]])


def _warped(images: Tensor, rows: list[list[Tensor]]) -> Tensor:
    maps = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False, padding_mode="border")


_MAKERS: Mapping[str, tuple[Callable[[Tensor, torch.Generator, float], Tensor], Any]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "blur": (_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": (_brightness, (0.05, 0.10, 0.15, 0.20, 0.30)),
    "contrast": (_contrast, (0.75, 0.50, 0.40, 0.30, 0.15)),
    "offset": (_offset, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "rotation": (_rotation, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "translation": (_translation, (1 / 28, 2 / 28, 3 / 28, 4 / 28, 5 / 28)),
    "scale": (_scale, (0.9, 0.8, 0.7, 0.6, 0.5)),
}

CORRUPTIONS: Mapping[str, Callable[[int], Corruption]] = {
    name: partial(Corruption, name) for name in _MAKERS
}
"""Corruptions by name, each a function of the severity, from 1 (mild) to 5 (severe)."""

HARMLESS: Mapping[str, Harmless] = {
    name: Corruption(name) for name in ("gaussian_noise", "impulse_noise", "offset", "translation")
}
"""The corruptions on which calibration also limits the false-alarm rate, unless others are given:
those that a detector is most likely to mistake for an attack. In one development task, for
example, a detector with Mahalanobis distance flags over 40 % of images with impulse noise if it
is not calibrated on them. With these four included, the false-alarm rate on the other six
corruptions stays near the requested one (docs/choosing.md)."""


def check_harmless(changes: object, bounds: Bounds | None) -> Mapping[str, Harmless]:
    """Return harmless changes by name, or raise.

    Args:
        changes: what was given as such.
        bounds: pixel bounds; None if they are unknown.

    Raises:
        InputError: when these are no changes by name, or the bounds that they need are unknown.
    """
    if not isinstance(changes, Mapping) or not all(map(callable, changes.values())):
        message = (
            f"expected harmless changes by name, got {type(changes).__name__}; pass a dictionary "
            "of functions of images, a seed and bounds"
        )
        raise InputError(message)
    if changes and bounds is None:
        message = (
            "expected the bounds of the pixels for harmless changes, got none; pass bounds=, or no "
            "changes: {}"
        )
        raise InputError(message)
    return changes
