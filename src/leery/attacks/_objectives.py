"""What a gradient attack climbs."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from leery._checks import check_labels
from leery.models import run_fast

__all__ = ["CrossEntropy", "Objective", "ObjectiveOf"]


class Objective(Protocol):
    """What the one loop of gradient attacks climbs, for one classifier.

    Attributes:
        chooses: True if :meth:`better` says which iterate is kept; False if it is the last one.
    """

    chooses: bool

    def value(self, images: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What is climbed, of each image.

        Args:
            images: float ``(N, ...)``, of which the loop takes gradients.
            labels: int64 ``(N,)``, the true classes.

        Returns:
            float ``(N,)``, or a tuple of K such terms, whose gradients :meth:`direction` mixes.
        """

    def direction(self, gradients: Tensor) -> Tensor:
        """Where to step, ``(N, ...)``, from the gradients of the terms, ``(K, N, ...)``."""

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        """Which new iterates replace the kept ones, bool ``(N,)``, by the values of both.

        Values are ``(N,)``, or ``(K, N)`` for K terms.
        """


ObjectiveOf = Callable[[nn.Module], Objective]
"""Makes the objective for a classifier in eval mode."""


class CrossEntropy:
    """The cross-entropy of the true class; the last iterate is kept.

    Args:
        model: the classifier, in eval mode.
    """

    chooses = False

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def value(self, images: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of each image, float ``(N,)``, nats."""
        logits = run_fast(self._model, images)
        check_labels(labels, len(images), logits.shape[1])
        return functional.cross_entropy(logits, labels, reduction="none")

    def direction(self, gradients: Tensor) -> Tensor:
        """The gradient itself."""
        return gradients[0]

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        """Where the cross-entropy is higher."""
        return new > old
