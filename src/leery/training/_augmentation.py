"""Random augmentation of training images, from none to moderate."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation with an individual severity for each image.

    The severity is 0 for a fraction ``unchanged`` of the images and uniform in [0, 1] for the
    others. Each strength below is a maximum, which is multiplied per image by the severity and by a
    uniform random number. Adversarial perturbations are not included.

    Attributes:
        unchanged: fraction of images that are not changed, in [0, 1].
        rotation: rotation in degrees, in either direction.
        shift: translation as a fraction of width and height, in either direction.
        scale: change of size as a fraction, in either direction.
        contrast: weight of a random grey level, one per image, mixed into the pixels, in [0, 1].
        impulses: fraction of pixels that become black or white, in all channels.
        noise: standard deviation of Gaussian noise, as a fraction of the pixel range.
    """

    unchanged: float = 0.3
    rotation: float = 15.0
    shift: float = 0.12
    scale: float = 0.1
    contrast: float = 0.2
    impulses: float = 0.02
    noise: float = 0.1

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment images.

        Args:
            images: float ``(N, channels, height, width)`` in [0, 1].
            generator: random generator on the images' device.

        Returns:
            Like ``images``, in [0, 1].
        """
        draw = _Draws(images, generator)
        severity = ((draw.uniform() - self.unchanged) / (1 - self.unchanged)).clamp_min(0)
        made = self._moved(images, draw, severity)
        keep = 1 - self.contrast * severity * draw.uniform()
        made = made * keep + (1 - keep) * draw.uniform()
        hit, share = draw.uniform_pixels(), self.impulses * severity * draw.uniform() / 2
        made = torch.where(hit < share, 0.0, torch.where(hit > 1 - share, 1.0, made))
        noise = self.noise * severity * draw.uniform()
        return (made + noise * draw.normal_pixels()).clamp_(0, 1)

    def _moved(self, images: Tensor, draw: "_Draws", severity: Tensor) -> Tensor:
        """Rotate, shift and scale images; pixels from outside repeat the border."""
        angle = math.radians(self.rotation) * severity * draw.signed()
        size = 1 + self.scale * severity * draw.signed()
        right, down = (2 * self.shift * severity * draw.signed() for _ in range(2))
        cos, sin = size * angle.cos(), size * angle.sin()
        rows = torch.stack(
            [torch.cat([cos, -sin, right], 1), torch.cat([sin, cos, down], 1)], 1
        ).view(len(images), 2, 3)
        grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False, padding_mode="border")


class _Draws:
    """Random numbers for a batch of images."""

    def __init__(self, images: Tensor, generator: torch.Generator) -> None:
        self._images = images
        self._generator = generator

    def uniform(self) -> Tensor:
        """One number in [0, 1) per image, ``(N, 1, 1, 1)``."""
        return self._rand(len(self._images), 1, 1, 1)

    def signed(self) -> Tensor:
        """One number in [-1, 1) per image."""
        return 2 * self.uniform() - 1

    def uniform_pixels(self) -> Tensor:
        """One number in [0, 1) per pixel, for all channels."""
        return self._rand(len(self._images), 1, *self._images.shape[2:])

    def normal_pixels(self) -> Tensor:
        """One normal number per pixel and channel."""
        shape, like = self._images.shape, self._images
        return torch.randn(shape, generator=self._generator, device=like.device, dtype=like.dtype)

    def _rand(self, *shape: int) -> Tensor:
        like = self._images
        return torch.rand(shape, generator=self._generator, device=like.device, dtype=like.dtype)
