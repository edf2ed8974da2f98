"""The detector of Tuna, Catak and Eskil (2020), the paper that leery comes from."""

from collections.abc import Sequence

from torch import Tensor

from leery.baselines._base import SupervisedBaseline
from leery.metrics import Metric
from leery.names import PAPER_METRICS

__all__ = ["PaperDetector"]


class PaperDetector(SupervisedBaseline):
    """Logistic regression on four uncertainties, the kernel density and the KL divergence.

    Needs a classifier with dropout.

    Args:
        model: the classifier.
        settings: keyword arguments of :class:`leery.Detector`, such as ``passes``, ``bandwidth``.

    Source:
        Tuna, Catak, Eskil (2020), arXiv:2012.06390. Departures: the bandwidth maximises the
        leave-one-out likelihood unless it is given.
    """

    def metrics_for(self, images: Tensor) -> Sequence[str | Metric]:
        """The six metrics of the paper."""
        del images
        return PAPER_METRICS
