"""Detectors that use a single metric."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from leery.detector import Detector
from leery.errors import InputError
from leery.metrics import Metric, make_metrics
from leery.names import BASELINES as _NAMES

__all__ = ["BASELINES", "SingleMetric"]


class SingleMetric:
    """A detector whose score is one metric, with its sign set so that larger is suspicious.

    Args:
        model: the classifier.
        metric: a name from :data:`leery.METRICS`, or an instance.
        settings: keyword arguments of :class:`leery.Detector`, such as ``feature_layer``.

    Attributes:
        model: the classifier.
    """

    def __init__(self, model: nn.Module, metric: str | Metric, **settings: Any) -> None:  # noqa: ANN401 - those of Detector
        self._detector = Detector(model, metrics=[metric], **settings)
        (named,) = make_metrics([metric])
        if named.direction == "both":
            message = (
                f"expected a baseline metric whose direction is larger or smaller, got "
                f"{named.name}, whose direction is both; use a Detector with that metric"
            )
            raise InputError(message)
        self.model = self._detector.model

    def fit(
        self,
        train: tuple[Tensor, Tensor],
        clean: tuple[Tensor, Tensor] | None = None,
        attacks: Sequence[Callable[..., Tensor]] = (),
    ) -> Self:
        """Fit on labelled training images; ``clean`` and ``attacks`` are ignored."""
        del clean, attacks
        self._detector.fit(*train)
        return self

    @property
    def differentiable(self) -> bool:
        """True if :meth:`differentiable_score` is exact, False if it is a surrogate."""
        return self._metric.differentiable

    def score(self, images: Tensor) -> np.ndarray:
        """The metric of each image, float64 ``(N,)``; larger is more suspicious.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        found: np.ndarray = self._sign * self._detector.measure(images).values[:, 0]
        return found

    def differentiable_score(self, images: Tensor) -> Tensor:
        """The metric or its differentiable surrogate, with gradients to the images.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        values, _ = self._detector.measure_with_gradient(images)
        return self._sign * values[:, 0]

    @property
    def _metric(self) -> Metric:
        (metric,) = self._detector.metrics_.values()
        return metric

    @property
    def _sign(self) -> int:
        return -1 if self._metric.direction == "smaller" else 1


BASELINES: Mapping[str, Callable[..., SingleMetric]] = {
    name: partial(SingleMetric, metric=name) for name in _NAMES
}
"""The baselines of ``leery evaluate --baselines``, each a function of the classifier."""
