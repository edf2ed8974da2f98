"""Deep k-nearest neighbours, of Papernot and McDaniel."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery._checks import check_count
from leery._files import below
from leery.baselines._base import MetricBaseline
from leery.metrics import Metric, TrainingPoints
from leery.models import submodules_of_images
from leery.observation import Needs, Observation
from leery.tuning import QUERIES

__all__ = ["DeepNeighbours", "DeepNeighboursBaseline"]

_WIDEST = 4096
"""Number of features per layer above which outputs of convolutions are average-pooled."""


class _Stored(TrainingPoints):
    """Features of training images of one layer, average-pooled and scaled to length 1."""

    def __init__(self, references: int, seed: int, layer: str) -> None:
        super().__init__(references, seed, layer)
        self.name = layer

    def features(self, seen: Observation) -> Tensor:
        return functional.normalize(_narrowed(seen.layers[self.layer]), dim=1)

    def finish(self) -> None:
        self._keep(self._settled())


class DeepNeighbours(Metric):
    """Share of the nearest training images, over all layers, that are not of the predicted class.

    Neighbours are those with the largest cosine similarity.

    Args:
        layers: names of the layers.
        k: number of neighbours per layer.
        references: maximum number of training images kept per class, chosen by a hash of their
            content.
        seed: seed of that hash.

    Source:
        Papernot and McDaniel (2018), arXiv:1803.04765: the nonconformity of the class that the
        classifier predicts, divided by the number of neighbours. Departures: the paper computes the
        credibility of the class that the neighbours support most. Here the search is exact but
        covers only a part of the training images, features are not centred, and outputs of
        convolutions with more than 4,096 elements are average-pooled.
    """

    name = "deep_neighbours"
    family = "distance"
    direction = "larger"
    differentiable = False

    def __init__(
        self, layers: Sequence[str], *, k: int = 75, references: int = 1000, seed: int = 0
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.k = check_count(k, "k")
        self.references, self.seed = references, seed
        self.needs = Needs(layers=self.layers)
        self.stored = nn.ModuleList(_Stored(references, seed, layer) for layer in self.layers)

    def update(self, seen: Observation, labels: Tensor) -> None:
        """Store the features of a part of the training data."""
        for stored in self._each():
            stored.update(seen, labels)

    def merge(self, other: Self) -> None:
        """Add the features that another metric of this class stored."""
        for stored, more in zip(self._each(), other._each(), strict=True):
            stored.merge(more)

    def learned(self) -> dict[str, Tensor]:
        """What each layer's metric learned."""
        return {
            f"{place}/{name}": tensor
            for place, stored in enumerate(self._each())
            for name, tensor in stored.learned().items()
        }

    def load_learned(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`learned` returned in another process."""
        for place, stored in enumerate(self._each()):
            stored.load_learned(below(state, str(place)))

    def finish(self) -> None:
        """Select the stored features."""
        for stored in self._each():
            stored.finish()

    def forward(self, seen: Observation) -> Tensor:
        """The share of each image, float64 ``(N,)``, in [0, 1]."""
        found = [
            (labels != seen.predicted.unsqueeze(1)).double().mean(1)
            for labels, _ in self._neighbours(seen)
        ]
        return torch.stack(found).mean(0)

    def smooth(self, seen: Observation) -> Tensor:
        """Minus the mean cosine similarity to the nearest images of the predicted class."""
        found = []
        for stored in self._each():
            similar = stored.features(seen) @ stored.points.to(seen.images.device).T
            other = _classes(stored).to(similar.device) != seen.predicted.unsqueeze(1)
            own = similar.masked_fill(other, -1.0)
            found.append(own.topk(min(self.k, own.shape[1]), dim=1).values.double().mean(1))
        return -torch.stack(found).mean(0)

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {name: getattr(self, name) for name in ("layers", "k", "references", "seed")}

    def _neighbours(self, seen: Observation) -> list[tuple[Tensor, Tensor]]:
        """Classes and cosine similarities ``(N, k)`` of the neighbours in each layer."""
        found = []
        for stored in self._each():
            points, classes = stored.points.to(seen.images.device), _classes(stored)
            parts = [
                (part @ points.T).topk(min(self.k, len(points)), dim=1)
                for part in stored.features(seen).split(QUERIES)
            ]
            places = torch.cat([part.indices for part in parts])
            similar = torch.cat([part.values for part in parts])
            found.append((classes.to(places.device)[places], similar))
        return found

    def _each(self) -> list[_Stored]:
        return [stored for stored in self.stored if isinstance(stored, _Stored)]


def _classes(stored: TrainingPoints) -> Tensor:
    """The class of each stored point, int64 ``(n,)``."""
    return torch.repeat_interleave(torch.arange(len(stored.counts)), stored.counts)


def _narrowed(values: Tensor) -> Tensor:
    """Features ``(N, D)`` of a layer, average-pooled until there are few enough."""
    while values[0].numel() > _WIDEST and values.ndim == 4 and min(values.shape[2:]) > 1:  # noqa: PLR2004 - of a convolution
        values = functional.avg_pool2d(values, 2, ceil_mode=True)
    return values.flatten(1)


class DeepNeighboursBaseline(MetricBaseline):
    """Share of the nearest training images, over all layers, that are not of the predicted class.

    Args:
        model: the classifier.
        k: number of neighbours per layer.
        references: maximum number of training images kept per class.
        settings: keyword arguments of :class:`leery.Detector`.

    Source:
        Papernot and McDaniel (2018), arXiv:1803.04765.
    """

    differentiable = False

    def __init__(
        self,
        model: nn.Module,
        *,
        k: int = 75,
        references: int = 1000,
        **settings: Any,  # noqa: ANN401 - those of Detector
    ) -> None:
        super().__init__(model, **settings)
        self._k, self._references = k, references

    def metrics_for(self, images: Tensor) -> Sequence[str | Metric]:
        """One metric for all layers."""
        layers = submodules_of_images(self.model, images)
        return [DeepNeighbours(layers, k=self._k, references=self._references)]

    def fused(self, values: Tensor, predicted: Tensor) -> Tensor:
        """The metric itself."""
        del predicted
        return values[:, 0]
