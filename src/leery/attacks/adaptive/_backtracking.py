"""Projected gradient ascent with momentum, whose step size shrinks when the objective falls."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from leery._checks import clamp
from leery.attacks._gradient import Climb, GradientAttack, gradients_of
from leery.attacks._norms import NORMS

__all__ = ["BacktrackingPGD"]

_SHRINK = 1.1
"""What the step size of an image is divided by when a step is undone."""


@dataclass(frozen=True)
class BacktrackingPGD(GradientAttack):
    r"""Projected gradient ascent with momentum that undoes steps after which the objective fell.

    .. math:: v \leftarrow 0.9\, v + 0.1\, d(\nabla_x L)

    Each image has a step size of its own, which shrinks by a factor of 1.1 with every undone step.

    Source:
        Stutz, Hein, Schiele (2020), arXiv:1910.06259, section 5 and appendix.
    """

    steps: int = field(default=1000, kw_only=True)
    momentum: float = field(default=0.9, kw_only=True)

    relative_step: ClassVar[float] = 0.1

    def climb(self, climb: Climb) -> Tensor:
        """The adversarial version of each image of a batch, ``(N, ...)``."""
        objective, norm, labels = climb.objective, NORMS[self.norm], climb.labels
        origin, kept = climb.origin, climb.start
        shape = (-1, *(1 for _ in kept.shape[1:]))
        size = torch.full((len(kept),), self.alpha, dtype=kept.dtype, device=kept.device)
        values, gradients = gradients_of(objective, kept, labels)
        motion = torch.zeros_like(kept)
        for _ in range(self.steps):
            ascent = norm.direction(objective.direction(gradients))
            # Also after an undone step, or the attack would try the same direction again.
            motion = self.momentum * motion + (1 - self.momentum) * ascent
            delta = kept + size.view(shape) * motion - origin
            trial = clamp(origin + norm.project(delta, self.epsilon), climb.bounds)
            tried, found = gradients_of(objective, trial, labels)
            # Equal values count as progress: on a plateau the iterate must move on.
            worse = objective.better(values, tried)
            undone = worse.view(shape)
            kept = torch.where(undone, kept, trial)
            values = torch.where(worse, values, tried)
            gradients = torch.where(undone, gradients, found)
            size = torch.where(worse, size / _SHRINK, size)
        return kept
