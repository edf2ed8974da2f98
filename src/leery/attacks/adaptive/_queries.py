"""Attacks on a guarded classifier that use no gradient."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery._checks import check_count, clamp
from leery.attacks._gradient import Climb, GradientAttack, stacked
from leery.attacks.adaptive._target import Target
from leery.errors import InputError

__all__ = ["Decisions", "SquareSearch"]

_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Fractions of the queries after which the squares get half their area."""


@dataclass(frozen=True)
class SquareSearch(GradientAttack):
    """Random search in L-infinity: squares of pixels are moved to an end of their interval.

    A change is kept if it does not lower the objective, whose value is asked for once a step and
    whose gradient is not used. All images are tried with the same draws, so that these depend on
    the seed alone. The first change is vertical stripes; the step size has no effect.

    Args:
        largest: area of the first squares as a fraction of the image's area, in (0, 1].

    Source:
        Andriushchenko et al. (2020), arXiv:1912.00049, for images ``(N, channels, height, width)``.
    """

    steps: int = field(default=1000, kw_only=True)
    largest: float = field(default=0.3, kw_only=True)

    def __post_init__(self) -> None:
        """Raise if a setting is outside its range."""
        super().__post_init__()
        if self.norm != "linf" or not 0 < self.largest <= 1:
            message = (
                'expected norm="linf" and a largest square in (0, 1], got '
                f"{self.norm!r} and {self.largest:g}; correct them"
            )
            raise InputError(message)

    @torch.no_grad()
    def climb(self, climb: Climb) -> Tensor:
        """The adversarial version of each image of a batch, ``(N, ...)``."""
        objective, origin, labels = climb.objective, climb.origin, climb.labels
        drawn = torch.Generator().manual_seed(climb.seed)
        stripes = _signs((1, origin.shape[1], 1, origin.shape[3]), drawn)
        kept, trial = climb.start, self._moved(origin, stripes, climb)
        values = stacked(objective.value(kept, labels))
        for step in range(self.steps):
            if step:
                mask = self._square(kept, step, drawn)
                signs = _signs((1, kept.shape[1], 1, 1), drawn)
                trial = torch.where(mask, self._moved(origin, signs, climb), kept)
            tried = stacked(objective.value(trial, labels))
            worse = objective.better(values, tried)
            kept = torch.where(worse.view(-1, 1, 1, 1), kept, trial)
            values = torch.where(worse, values, tried)
        return kept

    def _moved(self, origin: Tensor, signs: Tensor, climb: Climb) -> Tensor:
        """All pixels at an end of their interval."""
        return clamp(origin + (self.epsilon * signs.to(origin)).expand_as(origin), climb.bounds)

    def _square(self, images: Tensor, step: int, drawn: torch.Generator) -> Tensor:
        """A random square, bool ``(height, width)``."""
        height, width = images.shape[2:]
        halved = sum(step >= part * self.steps for part in _HALVINGS)
        side = max(1, round((self.largest / 2**halved * height * width) ** 0.5))
        side = min(side, height, width)
        top, left = (
            int(torch.randint(length - side + 1, (), generator=drawn)) for length in (height, width)
        )
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[top : top + side, left : left + side] = True
        return mask.to(images.device)


def _signs(shape: tuple[int, ...], drawn: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=drawn) * 2.0 - 1.0


class Decisions(nn.Module):
    """The verdicts of a guard as a classifier with one class more, which stands for "flagged".

    Attacks of other libraries that only look at the predicted class, such as HopSkipJump, then see
    what a user of the guard sees. They should seek a class other than the true one and the last.

    Args:
        target: the guarded classifier.
        classes: the number of its classes.

    Raises:
        InputError: when the number of classes is below 2.
    """

    def __init__(self, target: Target, *, classes: int) -> None:
        super().__init__()
        check_count(classes, "classes", least=2)
        self._target, self._classes = target, classes

    def forward(self, images: Tensor) -> Tensor:
        """1 for the class that is seen and 0 for the others, float32 ``(N, classes + 1)``.

        Raises:
            InputError: when the classifier has more classes.
        """
        classes, excess = self._target.judge(images.detach())
        if len(classes) and int(classes.max()) >= self._classes:
            message = (
                f"expected {self._classes} classes, got an image of class {int(classes.max())}; "
                "correct classes="
            )
            raise InputError(message)
        seen = torch.where(excess > 0, self._classes, classes)
        return functional.one_hot(seen, self._classes + 1).float().to(images.device)
