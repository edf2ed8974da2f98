"""Kernel density and Bayesian uncertainty (KD + BU), of Feinman et al."""

from collections.abc import Sequence

from torch import Tensor

from leery.baselines._base import SupervisedBaseline
from leery.metrics import Metric

__all__ = ["KernelDensityUncertainty"]


class KernelDensityUncertainty(SupervisedBaseline):
    """Logistic regression on the kernel density and the variance of dropout passes.

    Needs a classifier with dropout.

    Args:
        model: the classifier.
        settings: keyword arguments of :class:`leery.Detector`, such as ``passes``, ``bandwidth``.

    Source:
        Feinman et al. (2017), arXiv:1703.00410. Departures: the bandwidth maximises the
        leave-one-out likelihood unless it is given.
    """

    def metrics_for(self, images: Tensor) -> Sequence[str | Metric]:
        """Kernel density of the last hidden layer, and variance over the passes."""
        del images
        return ["kernel_density", "variance"]
