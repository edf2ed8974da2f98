"""Local intrinsic dimensionality (LID) of every layer, of Ma et al."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leery._checks import check_count
from leery.baselines._base import SupervisedBaseline
from leery.errors import InputError
from leery.metrics import Metric, TrainingPoints
from leery.models import submodules_of_images
from leery.observation import Observation

__all__ = ["IntrinsicDimensionality", "LocalIntrinsicDimensionality"]


class IntrinsicDimensionality(TrainingPoints):
    r"""Local intrinsic dimensionality of an input's features among training images of all classes.

    .. math:: - \Bigl( \frac1k \sum_{i=1}^k \log \frac{r_i}{r_k} \Bigr)^{-1}

    with the distances r to the k nearest training images, in ascending order.

    Args:
        k: number of neighbours.
        references: number of training images kept per class, chosen by a hash of their content.
        seed: seed of that hash.
        layer: layer whose flattened output is the features.

    Notes:
        A distance below 1e-12 counts as 1e-12. Where all k distances are equal the estimate is
        infinite; the mean log ratio is at most -1e-6, so that the metric is at most 1e6.

    Source:
        Ma et al. (2018), arXiv:1801.02613, eq. 4. Departures: they estimate from the minibatch to
        which the image belongs, 100 images at a time; here the reference is the same for every
        image.
    """

    family = "distance"
    direction = "larger"

    def __init__(self, k: int = 20, *, references: int = 10, seed: int = 0, layer: str) -> None:
        super().__init__(references, seed, layer)
        self.k = check_count(k, "k", least=2)
        self.name = f"lid_{layer}".replace("/", "_")

    def finish(self) -> None:
        """Select the stored features."""
        self._keep(self._settled())
        if len(self.points) < self.k:
            message = (
                f"expected at least {self.k} training images for {self.k} neighbours, got "
                f"{len(self.points)}; lower k or keep more references"
            )
            raise InputError(message)

    def forward(self, seen: Observation) -> Tensor:
        """The estimate of each image, float64 ``(N,)``, at least 0."""
        features = self.features(seen).double()
        points = self.points.to(features.device).double()
        distances = torch.cdist(features, points, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(self.k, dim=1, largest=False).values.clamp_min(1e-12)
        means = (nearest / nearest.amax(1, keepdim=True)).log().mean(1)
        return -1 / means.clamp_max(-1e-6)

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {name: getattr(self, name) for name in ("k", "references", "seed", "layer")}


class LocalIntrinsicDimensionality(SupervisedBaseline):
    """Logistic regression on the local intrinsic dimensionality of every layer.

    Args:
        model: the classifier.
        k: number of neighbours.
        references: number of training images kept per class.
        settings: keyword arguments of :class:`leery.Detector`.

    Source:
        Ma et al. (2018), arXiv:1801.02613.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        k: int = 20,
        references: int = 10,
        **settings: Any,  # noqa: ANN401 - those of Detector
    ) -> None:
        super().__init__(model, **settings)
        self._k, self._references = k, references

    def metrics_for(self, images: Tensor) -> Sequence[str | Metric]:
        """One metric per layer that returns a row per image."""
        return [
            IntrinsicDimensionality(self._k, references=self._references, layer=layer)
            for layer in submodules_of_images(self.model, images)
        ]
