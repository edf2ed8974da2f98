"""Mahalanobis distances of every layer, of Lee et al."""

from collections.abc import Sequence

from torch import Tensor

from leery.baselines._base import SupervisedBaseline
from leery.metrics import Mahalanobis, Metric
from leery.models import submodules_of_images

__all__ = ["LayerMahalanobis"]


class LayerMahalanobis(SupervisedBaseline):
    """Logistic regression on the Mahalanobis distance to the closest class in every layer.

    Args:
        model: the classifier.
        settings: keyword arguments of :class:`leery.Detector`.

    Source:
        Lee et al. (2018), arXiv:1807.03888. Departures: the image is not moved towards the closest
        class first (magnitude 0 of their input preprocessing), and the covariance is shrunk as in
        :class:`leery.metrics.Mahalanobis`.
    """

    def metrics_for(self, images: Tensor) -> Sequence[str | Metric]:
        """One metric per layer; outputs of convolutions are averaged over their positions."""
        return [
            Mahalanobis("closest", layer=layer, pooled=True)
            for layer in submodules_of_images(self.model, images)
        ]
