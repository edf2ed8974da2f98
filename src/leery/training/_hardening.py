"""Losses of classifiers that are trained to resist attacks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery.intervals import Box, margin_bounds

__all__ = ["HARDENINGS", "Hardening", "Loss", "Strength", "adversarial_loss", "interval_loss"]

Hardening = Literal["none", "adversarial", "interval", "distillation"]


@dataclass(frozen=True)
class Strength:
    """How hard a step of the training is.

    Attributes:
        epsilon: L-infinity radius at the end of the warm-up, in pixels of [0, 1].
        growth: fraction of it that is reached, in [0, 1].
        steps: number of steps of an attack.
    """

    epsilon: float
    growth: float
    steps: int

    @property
    def radius(self) -> float:
        """The radius that is reached."""
        return self.epsilon * self.growth


Loss = Callable[[nn.Module, Tensor, Tensor, Strength], Tensor]
"""Function of a model, images in [0, 1], labels and a strength that returns the mean loss."""

_REACH = 2.5
"""Length of all steps of the inner attack together, as a multiple of the radius."""

_WORST = 0.5
"""Largest weight of the cross-entropy on bounds, beside that on clean images."""


def adversarial_loss(
    model: nn.Module, images: Tensor, labels: Tensor, strength: Strength
) -> Tensor:
    """The cross-entropy on images that projected gradient descent has changed within the radius.

    Source:
        Madry et al. (2018), arXiv:1706.06083.
    """
    training, radius, steps = model.training, strength.radius, strength.steps
    model.eval()
    change = radius * (2 * torch.rand_like(images) - 1)
    for _ in range(steps):
        change = ((images + change).clamp(0, 1) - images).requires_grad_()
        loss = functional.cross_entropy(model(images + change), labels)
        (gradient,) = torch.autograd.grad(loss, change)
        moved = change.detach() + _REACH / steps * radius * gradient.sign()
        change = moved.clamp(-radius, radius)
    model.train(training)
    return functional.cross_entropy(model((images + change).clamp(0, 1)), labels)


def interval_loss(model: nn.Module, images: Tensor, labels: Tensor, strength: Strength) -> Tensor:
    """The cross-entropies on clean images and on the worst logits within the radius, mixed.

    The weight of the second one grows with the radius, to one half.

    Raises:
        UnsupportedModelError: when the model is no sequence of layers with interval bounds.

    Source:
        Gowal et al. (2018), arXiv:1810.12715.
    """
    training, radius = model.training, strength.radius
    box = Box((images - radius).clamp_min(0), (images + radius).clamp_max(1))
    margins = margin_bounds(nn.Sequential(*model.children()).eval(), box, labels)
    model.train(training)
    worst = functional.cross_entropy((-margins).scatter(1, labels.unsqueeze(1), 0), labels)
    clean = functional.cross_entropy(model(images), labels)
    weight = _WORST * strength.growth
    return (1 - weight) * clean + weight * worst


HARDENINGS: Mapping[Hardening, Loss] = {
    "adversarial": adversarial_loss,
    "interval": interval_loss,
}
"""Losses by name; distillation needs none of its own."""
