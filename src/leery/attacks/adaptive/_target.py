"""A guarded classifier from the view of an attacker who knows everything about it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leery._checks import check_images, check_labels
from leery.models import predict
from leery.observation import Scorer

__all__ = ["Excess", "Excesses", "Target"]

Excess = Callable[[Tensor], Tensor]
"""Function of images ``(N, ...)``: by how much the score of each one exceeds its threshold,
``(N,)``; above 0 for flagged images."""

Excesses = Callable[[Tensor], Tensor]
"""Function of images ``(N, ...)``: the excesses of K scores, ``(K, N)``."""


@dataclass(frozen=True)
class Target:
    """A guarded classifier from the view of an attacker who knows everything about it.

    Attributes:
        model: the classifier.
        excess: a differentiable excess, exact or a surrogate, which attacks bring down.
        judge: function of images that returns their predicted classes, int64 ``(N,)``, and the
            exact excess of each, float64 ``(N,)``, on the CPU and from one run. It alone decides
            whether an attack has succeeded; an excess that is not a number does not flag.
        helpers: other networks of the guard with the same classes, such as an auxiliary network or
            a sentinel, which a transfer attack attacks together with the classifier.
        apart: the excesses ``(K, N)`` of K detectors, the largest of which is the guard's; None for
            one detector.
    """

    model: nn.Module
    excess: Excess
    judge: Callable[[Tensor], tuple[Tensor, Tensor]]
    helpers: tuple[nn.Module, ...] = ()
    apart: Excesses | None = None

    @classmethod
    def of_scorer(cls, scorer: Scorer, threshold: float) -> "Target":
        """The target of a scorer that flags images whose score exceeds a threshold.

        Args:
            scorer: any detector with a differentiable score.
            threshold: the threshold.
        """

        def judge(images: Tensor) -> tuple[Tensor, Tensor]:
            score = torch.from_numpy(scorer.score(images))
            return predict(scorer.model, images).cpu(), score - threshold

        return cls(
            scorer.model, lambda images: scorer.differentiable_score(images) - threshold, judge
        )

    def evaded_by(self, images: Tensor, labels: Tensor) -> Tensor:
        """Whether each image is misclassified and not flagged, bool ``(N,)``, on the CPU.

        Raises:
            InputError: when images or labels do not fit.
        """
        check_images(images, floating=True)
        check_labels(labels, len(images))
        classes, excess = self.judge(images)
        return (classes != labels.cpu()) & ~(excess > 0)
