"""leery's default detector as an arena fits it."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from leery.attacks import HARMLESS
from leery.detector import Detector
from leery.models import predict

__all__ = ["DefaultDetector"]


class DefaultDetector:
    """A detector whose combiner is fitted to clean images and to their harmless changes.

    :meth:`leery.Detector.calibrate` fits the combiner in the same way on one half of its images. It
    is not used here, because an arena sets the threshold of every detector itself, on other images.

    Args:
        model: the classifier.
        settings: keyword arguments of :class:`leery.Detector`.

    Attributes:
        model: the classifier.
    """

    differentiable: bool = False

    def __init__(self, model: nn.Module, **settings: Any) -> None:  # noqa: ANN401 - those of Detector
        self._detector = Detector(model, **settings)
        self.model = self._detector.model

    def fit(
        self,
        train: tuple[Tensor, Tensor],
        clean: tuple[Tensor, Tensor],
        attacks: Sequence[Callable[..., Tensor]] = (),
    ) -> Self:
        """Fit the metrics on training images and the combiner on clean ones; no attack is used."""
        del attacks
        images, labels = clean
        self._detector.fit(*train)
        bounds = self._detector.inputs_.bounds or (0.0, 1.0)
        changed = [change(images, 0, bounds) for change in HARMLESS.values()]
        right = [part[predict(self.model, part) == labels] for part in (images, *changed)]
        self._detector.fit_combiner(right[0], noisy=torch.cat(right[1:]))
        return self

    def score(self, images: Tensor) -> np.ndarray:
        """The score of each image, float64 ``(N,)``; larger is more suspicious."""
        return self._detector.score(images)

    def differentiable_score(self, images: Tensor) -> Tensor:
        """A differentiable surrogate of the score, float64 ``(N,)``."""
        return self._detector.differentiable_score(images)
