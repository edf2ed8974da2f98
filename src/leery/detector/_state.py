"""What a detector has learned from training data, and what its combiner was taught."""

import math
from dataclasses import dataclass

from torch import Tensor

from leery.combiners import Combiner
from leery.detector._table import MetricTable
from leery.inputs import InputSpec
from leery.metrics import Metric
from leery.models import content_hashes

__all__ = ["Fitted", "Taught", "grid_of", "image_hashes"]


@dataclass(frozen=True)
class Fitted:
    """What the training data taught.

    Attributes:
        metrics: fitted.
        head: the layer that stands for the last hidden layer; None where no metric reads it.
        each: the layers that metrics over each layer read.
        inputs: of the training data.
        classes: the number of classes of the classifier.
        fingerprint: of the classifier.
        seen: int64, sorted: hashes of the training images; empty where images of the data recur
            anyway, as rows of few distinct values do, so that nothing follows from a recurrence.
        grid: to which pixels are rounded before they are hashed.
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
class Taught:
    """What clean images, and perhaps attacks, taught the combiner.

    Attributes:
        combiner: fitted.
        clean: the metrics of the clean images, with which explanations compare.
        seen: int64, sorted: hashes of the clean images.
    """

    combiner: Combiner
    clean: MetricTable
    seen: Tensor


def grid_of(images: Tensor) -> float:
    """The grid that pixels are rounded to before they are hashed, from a batch of training images.

    A power of two near 1/32 of the standard deviation: coarse enough for a copy that went through
    other arithmetic, fine enough to tell pictures apart.
    """
    std = float(images.detach().float().std(correction=0))
    return 2.0 ** round(math.log2(std / 32)) if std > 0 and math.isfinite(std) else 1.0


def image_hashes(images: Tensor, grid: float) -> Tensor:
    """Hashes by which an image is recognised, int64 ``(N,)``, on the CPU.

    Args:
        images: ``(N, ...)``.
        grid: to whose multiples floats are rounded.
    """
    rows = images.detach()
    return content_hashes((rows.double() / grid).round() if rows.is_floating_point() else rows)
