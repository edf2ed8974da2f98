"""Fitted state of a detector and of its combiner."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leery.combiners import Combiner
from leery.detector._table import MetricTable
from leery.inputs import InputSpec
from leery.metrics import Metric

__all__ = ["Fitted", "FittedCombiner"]


@dataclass(frozen=True)
class Fitted:
    """State fitted to the training data.

    Attributes:
        metrics: fitted metrics.
        head: layer used as the last hidden layer; None if no metric reads it.
        each: layers read by the metrics that use every layer.
        inputs: specification of the training inputs.
        classes: the number of classes of the classifier.
        fingerprint: fingerprint of the classifier.
        seen: int64, sorted: hashes of the training images; empty if more than a tenth of them are
            duplicates, as in tables with few distinct rows, because a match then proves nothing.
        grid: step to which pixels are rounded before they are hashed.
        accuracy: the share of the training images that the classifier gets right; None in a
            detector that was loaded.
    """

    metrics: tuple[Metric, ...]
    head: str | None
    each: tuple[str, ...]
    inputs: InputSpec
    classes: int
    fingerprint: str
    seen: Tensor
    grid: float
    accuracy: float | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics, in column order."""
        return tuple(metric.name for metric in self.metrics)


@dataclass(frozen=True)
class FittedCombiner:
    """Combiner fitted on clean and possibly adversarial images.

    Attributes:
        combiner: the fitted combiner.
        clean: metrics of the clean images, to which explanations compare.
        seen: int64, sorted: hashes of the clean and noisy images.
    """

    combiner: Combiner
    clean: MetricTable
    seen: Tensor

    def score(self, table: MetricTable) -> np.ndarray:
        """The score of each row, float64 ``(N,)``."""
        values, predicted = torch.from_numpy(table.values), torch.from_numpy(table.predicted)
        found: np.ndarray = self.combiner(values, predicted).numpy()
        return found
