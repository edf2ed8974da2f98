"""Image statistics that do not involve the classifier; fragile and not used by default.

They detect attacks of any strength that leave noise on uniform regions, and no others. They mistake
an offset, a blur or another camera for an attack, and an attacker who knows them can evade them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leery.errors import InputError
from leery.metrics._base import Metric
from leery.observation import Observation

__all__ = ["STATISTICS", "InputStatistic", "median_residual", "residual_kurtosis"]


def median_residual(images: Tensor) -> Tensor:
    """The mean absolute difference between a pixel and the median of its 3 x 3 neighbourhood.

    Args:
        images: float ``(N, channels, height, width)``.

    Returns:
        float64 ``(N,)``, in the units of the images; 0 for a constant image.

    Example:
        >>> float(median_residual(torch.ones(1, 1, 5, 5)))
        0.0
    """
    return _residual(images).abs().flatten(1).mean(1)


def residual_kurtosis(images: Tensor) -> Tensor:
    """Kurtosis of pixel minus 3 x 3 median: low for noise, high for edges and single pixels.

    Args:
        images: float ``(N, channels, height, width)``.

    Returns:
        float64 ``(N,)``, at least 1; 3 for Gaussian residuals, and for a constant image by
        convention.
    """
    residual = _residual(images).flatten(1)
    residual = residual - residual.mean(1, keepdim=True)
    variance = residual.square().mean(1)
    fourth = residual.pow(4).mean(1)
    flat = variance == 0
    ratio = fourth / torch.where(flat, torch.ones_like(variance), variance).square()
    return torch.where(flat, torch.full_like(variance, 3.0), ratio)


def _residual(images: Tensor) -> Tensor:
    wide = images.double()
    padded = functional.pad(wide, (1, 1, 1, 1), mode="reflect")
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
    return wide - windows.median(-1).values


STATISTICS: Mapping[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function for function in (median_residual, residual_kurtosis)
}
"""Functions of the image by name."""


class InputStatistic(Metric):
    """A function of the image as a metric.

    Args:
        function: a name from :data:`STATISTICS`.

    Raises:
        InputError: when there is no such function.

    Source:
        A simpler form of the natural-scene statistics of Kherchouche et al. (2020), "Detection of
        adversarial examples in deep neural networks with natural scene statistics".
    """

    family = "statistics"
    direction = "both"
    by_class = True

    def __init__(self, function: str) -> None:
        super().__init__()
        if function not in STATISTICS:
            names = ", ".join(STATISTICS)
            message = f"expected one of the functions {names}, got {function!r}; choose one"
            raise InputError(message)
        self.name = function

    def forward(self, seen: Observation) -> Tensor:
        """The function of the images, float64 ``(N,)``.

        Raises:
            InputError: when the inputs are not images.
        """
        if seen.images.ndim != 4:  # noqa: PLR2004 - images
            message = (
                f"expected images (channels, height, width) for {self.name}, got "
                f"{tuple(seen.images.shape[1:])}; leave it out of the metrics"
            )
            raise InputError(message)
        return STATISTICS[self.name](seen.images)

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {"function": self.name}
