"""What a detector has learned from training data, and what its combiner was taught."""

from dataclasses import dataclass

from torch import Tensor

from leery.combiners import Combiner
from leery.detector._table import MetricTable
from leery.inputs import InputSpec
from leery.metrics import Metric
from leery.models import content_hashes

__all__ = ["Fitted", "Taught", "image_hashes"]


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
        seen: int64, sorted: hashes of the training images.
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


def image_hashes(images: Tensor) -> Tensor:
    """Hashes by which an image is known again, int64 ``(N,)``.

    Floats are rounded to 1 / 4096, so that a copy from other arithmetic is recognised too.
    """
    rows = (images.detach() * 4096).round() if images.is_floating_point() else images
    return content_hashes(rows)
