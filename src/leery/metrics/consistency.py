"""Whether the prediction survives small changes of the image that a person would not notice.

The changes are drawn once from the detector's seed and are the same for every image, so that a
score is a function of the image alone. Each view costs one forward pass.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from leery._checks import Bounds, bounds_like, check_count
from leery.errors import InputError
from leery.metrics._base import Metric
from leery.metrics._odds import largest_other, log_odds_against
from leery.observation import Needs, Observation, View

__all__ = ["NoiseConsistency", "ShiftConsistency", "Squeezing", "SqueezingMeasure"]


class NoiseConsistency(Metric):
    r"""The largest rise, under noise, of another class's logit over that of the predicted class.

    .. math:: \max_{j \ne c} \frac1V \sum_v
        \bigl[(z_j - z_c)(x + \sigma n_v) - (z_j - z_c)(x)\bigr]

    Iterative attacks end in a small region that noise leaves: large values are suspicious.

    Args:
        sigma: standard deviation of the noise, as a share of the range of the pixels.
        draws: the number of noisy views.

    Notes:
        It finds iterative attacks with confident predictions, which uncertainty and disagreement
        miss. It does not find attacks that change few pixels strongly, or single-step attacks. Each
        draw costs one forward pass.

    Source:
        Roth, Kilcher, Hofmann (2019), arXiv:1902.04818, eq. 5. Departures: values are not
        standardised per pair of classes (the conformal combiner subtracts the median of the
        predicted class instead), and the noise is the same for every image.
    """

    name = "noise_consistency"
    family = "consistency"
    direction = "larger"
    by_class = True

    def __init__(self, sigma: float = 0.05, *, draws: int = 4) -> None:
        super().__init__()
        if not sigma > 0:
            message = f"expected a sigma above 0, got {sigma}; correct it"
            raise InputError(message)
        self.sigma = float(sigma)
        self.draws = check_count(draws, "draws")
        self._views = tuple(
            View(f"noise {sigma:g} {number}", partial(_noisy, self.sigma))
            for number in range(self.draws)
        )
        self.needs = Needs(views=self._views)

    def forward(self, seen: Observation) -> Tensor:
        """The largest mean change, float64 ``(N,)``, in the units of the logits."""
        before = _against(seen.logits, seen.predicted)
        after = torch.stack(
            [_against(seen.views[view].logits, seen.predicted) for view in self._views]
        ).mean(0)
        return largest_other(after - before, seen.predicted)

    def options(self) -> dict[str, Any]:
        """The arguments that make another such metric."""
        return {"sigma": self.sigma, "draws": self.draws}


class ShiftConsistency(Metric):
    """The log odds that the predicted class is wrong, averaged over images shifted by a pixel.

    Args:
        pixels: the length of the shifts: up, down, left and right; what leaves one side comes in
            at the other.

    Source:
        Consistency under transformations: Tian, Yang, Cai (2018), "Detecting adversarial examples
        through image transformation".
    """

    name = "shift_consistency"
    family = "consistency"
    direction = "larger"

    def __init__(self, pixels: int = 1) -> None:
        super().__init__()
        self.pixels = check_count(pixels, "pixels")
        self._views = tuple(
            View(f"shift {way}", partial(_rolled, way))
            for way in ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels))
        )
        self.needs = Needs(views=self._views)

    def forward(self, seen: Observation) -> Tensor:
        """The mean log odds, float64 ``(N,)``."""
        odds = [log_odds_against(seen.views[view].logits, seen.predicted) for view in self._views]
        return torch.stack(odds).mean(0)

    def options(self) -> dict[str, Any]:
        """The arguments that make another such metric."""
        return {"pixels": self.pixels}


SqueezingMeasure = Literal["probabilities", "logits"]


class Squeezing(Metric):
    r"""How far the output moves when the image is squeezed.

    .. math:: \sum_j | p_j(x) - p_j(s(x)) |
        \quad\text{or}\quad
        \max_{j \ne c} \bigl[(z_j - z_c)(s(x)) - (z_j - z_c)(x)\bigr]

    The first, in probabilities, finds attacks that barely cross the boundary; the second, in
    logits, also those that the classifier is very sure of.

    Args:
        squeezer: "bits" rounds pixels to ``size`` bits; "median" takes the median of ``size`` x
            ``size`` pixels, per channel.
        size: bits, at least 1, or an odd number of pixels, at least 3.
        measure: "probabilities" or "logits".

    Notes:
        One bit serves black-and-white pictures such as digits and says nothing of photographs. The
        stand-in for the derivative treats the squeezer as the identity (BPDA). Two metrics of one
        squeezer share its forward pass.

    Source:
        Xu, Evans, Qi (2018), arXiv:1704.01155; one squeezer per metric. In logits: the statistic of
        :class:`NoiseConsistency`.
    """

    family = "consistency"
    direction = "larger"
    differentiable = False

    def __init__(
        self,
        squeezer: str = "bits",
        size: int = 1,
        *,
        measure: SqueezingMeasure = "probabilities",
    ) -> None:
        super().__init__()
        check_count(size, "a size", least=1 if squeezer == "bits" else 3)
        known = squeezer == "bits" or (squeezer == "median" and size % 2 == 1)
        if not known or measure not in get_args(SqueezingMeasure):
            message = (
                'expected the squeezer "bits" or, with an odd size, "median", and the measure '
                f'"probabilities" or "logits", got {squeezer!r} of size {size} and {measure!r}; '
                "correct them"
            )
            raise InputError(message)
        self.squeezer, self.size = squeezer, size
        self.measure: SqueezingMeasure = measure
        self.by_class = measure == "logits"
        view = f"{size}bit" if squeezer == "bits" else f"median{size}"
        self.name = f"squeezing_{view}" + ("_logits" if measure == "logits" else "")
        # The view of equal squeezers is one and the same, so that it is run once.
        self._view = _squeezed(squeezer, size)
        self.needs = Needs(views=(self._view,))

    def forward(self, seen: Observation) -> Tensor:
        """The change of each image, float64 ``(N,)``; of probabilities in [0, 2]."""
        return self._moved(seen, seen.views[self._view].logits)

    def smooth(self, seen: Observation) -> Tensor:
        """The same value, with the derivative as if squeezing were the identity."""
        images, squeezed = seen.images, seen.views[self._view].images.detach()
        return self._moved(seen, seen.classifier(images + (squeezed - images).detach()))

    def options(self) -> dict[str, Any]:
        """The arguments that make another such metric."""
        return {"squeezer": self.squeezer, "size": self.size, "measure": self.measure}

    def _moved(self, seen: Observation, after: Tensor) -> Tensor:
        if self.measure == "probabilities":
            return (seen.logits.double().softmax(1) - after.double().softmax(1)).abs().sum(1)
        before = _against(seen.logits, seen.predicted)
        return largest_other(_against(after, seen.predicted) - before, seen.predicted)


@cache
def _squeezed(squeezer: str, size: int) -> View:
    make = _rounded if squeezer == "bits" else _median
    return View(f"{squeezer} {size}", partial(make, size))


def _against(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits minus that of the class, float64 ``(N, classes)``."""
    wide = logits.double()
    return wide - wide.gather(1, classes.unsqueeze(1))


def _check_floating(images: Tensor) -> None:
    """Refuse integers, which have neither noise nor fewer bits."""
    if not images.is_floating_point():
        message = (
            "expected floating-point inputs for metrics of consistency, got "
            f"{images.dtype}; leave them out of the metrics"
        )
        raise InputError(message)


def _noisy(sigma: float, images: Tensor, generator: torch.Generator, pixels: Bounds) -> Tensor:
    _check_floating(images)
    low, high = bounds_like(pixels, images)
    noise = torch.randn(images.shape[1:], generator=generator, dtype=images.dtype)
    return images + sigma * (high - low) * noise.to(images.device)


def _rolled(
    way: Sequence[int], images: Tensor, _generator: torch.Generator, _pixels: Bounds
) -> Tensor:
    if images.ndim != 4:  # noqa: PLR2004 - images
        message = (
            "expected images (channels, height, width) for shift_consistency, got "
            f"{tuple(images.shape[1:])}; leave it out of the metrics"
        )
        raise InputError(message)
    return images.roll(tuple(way), (-2, -1))


def _rounded(bits: int, images: Tensor, _generator: torch.Generator, pixels: Bounds) -> Tensor:
    _check_floating(images)
    low, high = bounds_like(pixels, images)
    levels = 2**bits - 1
    rounded: Tensor = ((images - low) / (high - low) * levels).round() / levels
    return low + rounded * (high - low)


def _median(size: int, images: Tensor, _generator: torch.Generator, _pixels: Bounds) -> Tensor:
    padded = functional.pad(images, (size // 2,) * 4, mode="reflect")
    windows: Tensor = padded.unfold(2, size, 1).unfold(3, size, 1).flatten(4)
    return windows.median(-1).values
