"""Detectors that use a single metric."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from leery.baselines._base import MetricBaseline
from leery.errors import InputError
from leery.metrics import Metric, make_metrics

__all__ = ["SingleMetric"]


class SingleMetric(MetricBaseline):
    """A detector whose score is one metric, its sign set so that larger is more suspicious.

    Args:
        model: the classifier.
        metric: a name from :data:`leery.METRICS`, or an instance.
        settings: keyword arguments of :class:`leery.Detector`, such as ``feature_layer``.

    Attributes:
        model: the classifier.
    """

    def __init__(self, model: nn.Module, metric: str | Metric, **settings: Any) -> None:  # noqa: ANN401 - those of Detector
        super().__init__(model, **settings)
        (named,) = make_metrics([metric])
        if named.direction == "both":
            message = (
                f"expected a baseline metric whose direction is larger or smaller, got "
                f"{named.name}, whose direction is both; use a Detector with that metric"
            )
            raise InputError(message)
        self._metric = named
        self.differentiable = named.differentiable
        self._sign = -1 if named.direction == "smaller" else 1

    def metrics_for(self, images: Tensor) -> Sequence[str | Metric]:
        """The metric."""
        del images
        return [self._metric]

    def fused(self, values: Tensor, predicted: Tensor) -> Tensor:
        """The metric, with its sign, of each row."""
        del predicted
        return self._sign * values[:, 0]
