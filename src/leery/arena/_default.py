"""leery's default detector and its sentinel as an arena fits them."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from leery.attacks import HARMLESS
from leery.calibration import Calibration
from leery.certify import pretrained_sentinel
from leery.detector import Detector
from leery.models import predict

__all__ = ["DefaultDetector", "SentinelDetector"]


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


class SentinelDetector:
    """The sentinel of a dataset, alone.

    Args:
        model: the classifier.
        dataset: the dataset for which the sentinel ships.

    Attributes:
        model: the classifier.
    """

    differentiable: bool = True

    def __init__(self, model: nn.Module, *, dataset: str) -> None:
        self._sentinel = pretrained_sentinel(dataset, model)
        self.model = model

    def fit(
        self,
        train: tuple[Tensor, Tensor],
        clean: tuple[Tensor, Tensor],
        attacks: Sequence[Callable[..., Tensor]] = (),
    ) -> Self:
        """Return the detector as it is: its sentinel ships trained, on training images alone."""
        del train, clean, attacks
        return self

    def score(self, images: Tensor) -> np.ndarray:
        """The score of each image, float64 ``(N,)``; larger is more suspicious."""
        return self._sentinel.score(images)

    def differentiable_score(self, images: Tensor) -> Tensor:
        """The score with its gradient, float64 ``(N,)``."""
        return self._sentinel.differentiable_score(images)

    def certify(
        self, images: Tensor, labels: Tensor, calibration: Calibration, *, epsilon: float
    ) -> np.ndarray:
        """Whether it is proved that every misclassified image within epsilon is flagged."""
        return self._sentinel.calibrated(calibration).certify(images, labels, epsilon=epsilon)
