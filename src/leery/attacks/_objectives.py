"""Objectives that a gradient attack maximizes."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from leery._checks import check_labels
from leery.models import run_fast

__all__ = ["CrossEntropy", "Objective", "ObjectiveOf"]


class Objective(Protocol):
    """Interface of an objective that a gradient attack maximizes for one classifier.

    Attributes:
        chooses: True to return the best iterate by :meth:`better`, False to return the last.
    """

    chooses: bool

    def value(self, images: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The objective of each image.

        Args:
            images: float ``(N, ...)``, with respect to which the loop differentiates.
            labels: int64 ``(N,)``, the true classes.

        Returns:
            float ``(N,)``, or a tuple of K such terms, whose gradients :meth:`direction` combines.
        """

    def direction(self, gradients: Tensor) -> Tensor:
        """The step direction, ``(N, ...)``, from the gradients of the terms, ``(K, N, ...)``."""

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        """Mask of the new iterates that replace the best so far, bool ``(N,)``.

        Both arguments are objectives, ``(N,)``, or ``(K, N)`` for K terms.
        """


ObjectiveOf = Callable[[nn.Module], Objective]
"""Function that makes the objective for a classifier in eval mode."""


class CrossEntropy:
    """The cross-entropy of the true class; the attack returns the last iterate.

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
        """The gradient of the cross-entropy, ``(N, ...)``."""
        return gradients[0]

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        """Mask of the images whose cross-entropy is higher, bool ``(N,)``."""
        return new > old
