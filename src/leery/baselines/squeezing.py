"""Feature squeezing, of Xu et al."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from leery.baselines._base import MetricBaseline
from leery.metrics import Metric, Squeezing

__all__ = ["FeatureSqueezing"]


class FeatureSqueezing(MetricBaseline):
    """The largest change of the class probabilities under several squeezers.

    Args:
        model: the classifier.
        bits: number of bits to which pixels are rounded; by default 1 for greyscale and 5 for
            colour images.
        window: width of the median filter in pixels.
        settings: keyword arguments of :class:`leery.Detector`.

    Source:
        Xu, Evans, Qi (2018), arXiv:1704.01155, the joint detector. Departures: no squeezer by
        non-local means, which the paper adds for colour images; the median filter pads by
        reflection.
    """

    differentiable = False

    def __init__(
        self,
        model: nn.Module,
        *,
        bits: int | None = None,
        window: int = 2,
        **settings: Any,  # noqa: ANN401 - those of Detector
    ) -> None:
        super().__init__(model, **settings)
        self._bits, self._window = bits, window

    def metrics_for(self, images: Tensor) -> Sequence[str | Metric]:
        """One metric per squeezer."""
        grey = images.ndim == 4 and images.shape[1] == 1  # noqa: PLR2004 - images
        bits = self._bits or (1 if grey else 5)
        return [Squeezing("bits", bits), Squeezing("median", self._window)]

    def fused(self, values: Tensor, predicted: Tensor) -> Tensor:
        """The largest change of each image, in [0, 2]."""
        del predicted
        return values.amax(1)
