"""Base classes of published detectors that combine several metrics into one score."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from leery._checks import Bounds
from leery.attacks import gaussian_noise, placed
from leery.combiners import Facts, LogisticCombiner
from leery.detector import Detector, MetricTable
from leery.errors import InputError, NotFittedError
from leery.metrics import Metric
from leery.models import predict

__all__ = ["MetricBaseline", "SupervisedBaseline", "training_versions"]

Labelled = tuple[Tensor, Tensor]


class MetricBaseline(ABC):
    """Base class of detectors that measure a set of metrics and fuse them into a score.

    Args:
        model: the classifier.
        settings: keyword arguments of :class:`leery.Detector`, such as ``passes`` and ``bounds``.

    Attributes:
        model: the classifier.
        learns_from_attacks: True if :meth:`fit` needs attacks.
        differentiable: True if :meth:`differentiable_score` is exact, False if it is a surrogate.
    """

    learns_from_attacks: ClassVar[bool] = False
    differentiable: bool = True

    def __init__(self, model: nn.Module, **settings: Any) -> None:  # noqa: ANN401 - those of Detector
        self.model = model
        self._settings = settings
        self._detector: Detector | None = None

    @abstractmethod
    def metrics_for(self, images: Tensor) -> Sequence[str | Metric]:
        """The metrics, which may depend on the layers of the classifier.

        Args:
            images: the first training images, ``(N, ...)``.
        """

    @abstractmethod
    def fused(self, values: Tensor, predicted: Tensor) -> Tensor:
        """The score of each row of metrics; larger is more suspicious.

        Args:
            values: float64 ``(N, M)``.
            predicted: int64 ``(N,)``, the predicted classes.

        Returns:
            float64 ``(N,)``.
        """

    def training_part(self, train: Labelled) -> Labelled:
        """The training images that the metrics are fitted on; by default all."""
        return train

    def fit(
        self,
        train: Labelled,
        clean: Labelled | None = None,
        attacks: Sequence[Callable[..., Tensor]] = (),
    ) -> Self:
        """Fit on labelled training images.

        Args:
            train: training images ``(N, ...)`` and their true classes.
            clean: other labelled images; ignored unless the detector learns from attacks.
            attacks: attacks on those images; ignored unless the detector learns from attacks.
        """
        del clean, attacks
        images, labels = self.training_part(train)
        metrics = self.metrics_for(images[:2])
        self._detector = Detector(self.model, metrics=metrics, **self._settings).fit(images, labels)
        return self

    def score(self, images: Tensor) -> np.ndarray:
        """The score of each image, float64 ``(N,)``; larger is more suspicious.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self.score_of(self.measure(images))

    def measure(self, images: Tensor) -> MetricTable:
        """The metrics of each image.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self._fitted.measure(images)

    def score_of(self, table: MetricTable) -> np.ndarray:
        """The score of each row of measured metrics, float64 ``(N,)``."""
        with torch.no_grad():
            found = self.fused(torch.from_numpy(table.values), torch.from_numpy(table.predicted))
        scores: np.ndarray = found.numpy()
        return scores

    def differentiable_score(self, images: Tensor) -> Tensor:
        """The score or a differentiable surrogate, float64 ``(N,)``, with gradients to the images.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        return self.fused(*self._fitted.measure_with_gradient(images))

    @property
    def _fitted(self) -> Detector:
        if self._detector is None:
            message = f"expected a fitted {type(self).__name__}, got an unfitted one; call fit"
            raise NotFittedError(message)
        return self._detector


class SupervisedBaseline(MetricBaseline):
    """Base class of detectors that fit a logistic regression on metrics of attacked images.

    The negatives are clean images and their noisy versions, the positives the adversarial versions
    that are misclassified. Images that are misclassified without an attack are left out.
    """

    learns_from_attacks: ClassVar[bool] = True

    def __init__(self, model: nn.Module, **settings: Any) -> None:  # noqa: ANN401 - those of Detector
        super().__init__(model, **settings)
        self._combiner: LogisticCombiner | None = None

    def fit(
        self,
        train: Labelled,
        clean: Labelled | None = None,
        attacks: Sequence[Callable[..., Tensor]] = (),
    ) -> Self:
        """Fit the metrics on training images and the regression on attacked clean images.

        Args:
            train: training images ``(N, ...)`` and their true classes.
            clean: other images and their true classes, which are attacked.
            attacks: attacks, at least one.

        Raises:
            InputError: when clean images or attacks are missing, or no attack succeeds.
        """
        super().fit(train)
        return self.learn(clean, attacks)

    def learn(self, clean: Labelled | None, attacks: Sequence[Callable[..., Tensor]]) -> Self:
        """Fit the regression again, on other attacks, after :meth:`fit`.

        Args:
            clean: images and their true classes, which are attacked.
            attacks: attacks, at least one.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when clean images or attacks are missing, or no attack succeeds.
        """
        detector = self._fitted
        given = training_versions(self.model, clean, attacks, bounds=detector.inputs_.bounds)
        adversarial = np.repeat([False, False, True], [len(images) for images in given])
        table = MetricTable.joined([detector.measure(images) for images in given])
        values, predicted, attacked = map(
            torch.from_numpy, (table.values, table.predicted, adversarial)
        )
        self.fit_fusion(values, predicted, attacked)
        return self

    def fit_fusion(self, values: Tensor, predicted: Tensor, adversarial: Tensor) -> None:
        """Fit what :meth:`fused` computes; by default the regression.

        Args:
            values: float64 ``(N, M)``, the metrics of clean, noisy and adversarial images.
            predicted: int64 ``(N,)``, their predicted classes.
            adversarial: bool ``(N,)``.
        """
        facts = [Facts.of(metric) for metric in self._fitted.metrics_.values()]
        self._combiner = LogisticCombiner(facts).fit(
            values.numpy(), predicted.numpy(), adversarial=adversarial.numpy()
        )

    def fused(self, values: Tensor, predicted: Tensor) -> Tensor:
        """The log odds of being adversarial of each row of metrics, float64 ``(N,)``."""
        if self._combiner is None:
            message = f"expected a fitted {type(self).__name__}, got an unfitted one; call fit"
            raise NotFittedError(message)
        found: Tensor = self._combiner(values, predicted)
        return found


def training_versions(
    model: nn.Module,
    clean: Labelled | None,
    attacks: Sequence[Callable[..., Tensor]],
    *,
    bounds: Bounds | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Images from which a detector learns what an attack is.

    The noise has the mean L2 norm of the successful perturbations, so that the size of a change
    does not tell noise and attacks apart.

    Args:
        model: the classifier.
        clean: images ``(N, ...)`` and their true classes.
        attacks: attacks, at least one.
        bounds: pixel bounds of the noise and of attacks that have none; (0, 1) by default.

    Returns:
        The clean images that are classified correctly, their noisy versions, and those adversarial
        versions, over all attacks, that are misclassified.

    Raises:
        InputError: when clean images or attacks are missing, or no attack succeeds.
    """
    if clean is None or not attacks:
        message = (
            "expected labelled clean images and attacks, from which this detector learns, got "
            f"{'no images' if clean is None else 'no attack'}; pass clean=(images, labels) and "
            "attacks=[...]"
        )
        raise InputError(message)
    images, labels = clean
    right = predict(model, images) == labels
    images, labels = images[right], labels[right]
    made, sources = [], []
    for attack in attacks:
        attacked = placed(attack, bounds)(model, images, labels)
        wrong = predict(model, attacked) != labels
        made.append(attacked[wrong])
        sources.append(images[wrong])
    adversarial = torch.cat(made)
    if not len(adversarial):
        message = (
            f"expected attacks that change the predicted class, got none in {len(images)} images; "
            "pass stronger attacks or more images"
        )
        raise InputError(message)
    norms = (adversarial - torch.cat(sources)).flatten(1).norm(dim=1)
    sigma = float(norms.mean()) / math.sqrt(images[0].numel())
    noisy = gaussian_noise(images, sigma, bounds=bounds or (0.0, 1.0))
    return images, noisy, adversarial
