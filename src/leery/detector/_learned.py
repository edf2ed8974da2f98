"""What a fit learns from a part of the training data, and how parts are merged."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from leery._files import below
from leery.errors import InputError, UnsupportedModelError
from leery.inputs import Moments
from leery.metrics import Metric
from leery.models import image_hashes
from leery.observation import Observation

__all__ = ["Learned", "OutputRange"]


@dataclass
class OutputRange:
    """Range and row sums of the classifier's outputs."""

    low: float = float("inf")
    high: float = -float("inf")
    least: float = float("inf")
    most: float = -float("inf")

    def see(self, logits: Tensor) -> None:
        """Add the outputs of a batch."""
        sums = logits.double().sum(1)
        values = (logits.min(), logits.max(), sums.min(), sums.max())
        self.merge(OutputRange(*map(float, values)))

    def merge(self, other: Self) -> None:
        """Add the outputs of another part."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def check(self) -> None:
        """Raise if the outputs are probabilities, percentages or sigmoids.

        Raises:
            UnsupportedModelError: when the outputs are not logits.
        """
        total, spread = self.most, self.most - self.least
        if self.low >= 0 and spread <= 1e-3 * total and total > 0:
            what = "probabilities" if abs(total - 1) < 1e-2 else f"rows with sum {total:g}"  # noqa: PLR2004
            advice = "remove its softmax"
        elif self.low >= 0 and self.high <= 1:
            what, advice = "only elements in [0, 1], as a sigmoid does", "remove its sigmoid"
        else:
            return
        message = (
            f"expected a model that returns logits, got one that returns {what}; {advice}, or pass "
            "trust_outputs=True (--trust-outputs) if they are logits"
        )
        raise UnsupportedModelError(message)


@dataclass
class Learned:
    """What was learned from consecutive training images.

    Parts are merged in their order, which gives the same bytes whichever processes learned them.

    Attributes:
        metrics: the metrics that learn.
        count: number of images.
        right: number of images that the classifier gets right.
        moments: range and moments of the pixels.
        hashes: hashes of the images.
        labels: the classes that occur.
        outputs: range of the classifier's outputs.
    """

    metrics: Sequence[Metric]
    count: int = 0
    right: int = 0
    moments: Moments = field(default_factory=Moments)
    hashes: list[Tensor] = field(default_factory=list)
    labels: set[int] = field(default_factory=set)
    outputs: OutputRange = field(default_factory=OutputRange)

    @classmethod
    def nothing(cls, metrics: Sequence[Metric]) -> Self:
        """The state before the first image; a metric that cannot be merged is not copied."""
        return cls([copy.deepcopy(metric) if metric.merges else metric for metric in metrics])

    def see(self, seen: Observation, labels: Tensor, grid: float) -> None:
        """Add the statistics of a batch; the metrics are updated by the caller."""
        self.moments.add(seen.images)
        self.hashes.append(image_hashes(seen.images, grid))
        self.count += len(seen)
        self.right += int((seen.predicted == labels).sum())
        self.labels.update(labels.unique().tolist())
        self.outputs.see(seen.logits)

    def merge(self, other: Self) -> None:
        """Add what was learned from the next images."""
        for metric, more in zip(self.metrics, other.metrics, strict=True):
            if more is not metric:
                metric.merge(more)
        self.moments.merge(other.moments)
        self.hashes += other.hashes
        self.count += other.count
        self.right += other.right
        self.labels |= other.labels
        self.outputs.merge(other.outputs)

    def seen(self) -> Tensor:
        """Distinct hashes of the images; empty if the data contain many duplicates."""
        hashes = torch.cat(self.hashes)
        distinct: Tensor = hashes.unique()
        return distinct if len(distinct) > 0.9 * len(hashes) else distinct[:0]

    def check(self, classes: int, *, plain: bool) -> None:
        """Raise if the outputs are not logits or a class has no image.

        Args:
            classes: the number of classes.
            plain: True if the outputs are known to be logits.
        """
        if not plain:
            self.outputs.check()
        missing = sorted(set(range(classes)) - self.labels)
        if missing:
            message = (
                f"expected training images of all {classes} classes, got none of {missing}; "
                "add some"
            )
            raise InputError(message)

    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        moments, outputs = self.moments, self.outputs
        return {
            "counts": torch.tensor([self.count, self.right, moments.count]),
            "moments": torch.tensor(
                [moments.low, moments.high, moments.total, moments.squares], dtype=torch.float64
            ),
            "outputs": torch.tensor(
                [outputs.low, outputs.high, outputs.least, outputs.most], dtype=torch.float64
            ),
            "hashes": torch.cat(self.hashes),
            "labels": torch.tensor(sorted(self.labels)),
            **{
                f"{metric.name}/{name}": tensor
                for metric in self.metrics
                for name, tensor in metric.learned().items()
            },
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metrics: Sequence[Metric]) -> Self:
        """The inverse of :meth:`tensors`, with copies of unfitted metrics."""
        own = cls.nothing(metrics)
        own.count, own.right, pixels = tensors["counts"].tolist()
        low, high, total, squares = tensors["moments"].tolist()
        own.moments = Moments(low, high, pixels, total, squares)
        own.outputs = OutputRange(*tensors["outputs"].tolist())
        own.hashes, own.labels = [tensors["hashes"]], set(tensors["labels"].tolist())
        for metric in own.metrics:
            metric.load_learned(below(tensors, metric.name))
        return own
