"""Consistency of the prediction under small changes of the image that humans barely notice.

The changes are drawn once from the detector's seed and are the same for every image, so that the
metrics depend only on the image. Each view costs one forward pass.
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
    r"""Largest increase, under noise, of another class's logit relative to the predicted class.

    .. math:: \max_{j \ne c} \frac1V \sum_v
        \bigl[(z_j - z_c)(x + \sigma n_v) - (z_j - z_c)(x)\bigr]

    Iterative attacks end in a small region that added noise leaves; larger is more suspicious.

    Args:
        sigma: standard deviation of the noise, as a fraction of the pixel range.
        draws: the number of noisy views.

    Notes:
        The metric detects iterative attacks with confident predictions, which uncertainty and
        disagreement miss. It does not detect attacks that strongly change a few pixels, or
        single-step attacks. Each draw costs one forward pass.

    Source:
        Roth, Kilcher, Hofmann (2019), arXiv:1902.04818, eq. 5. Departures: differences are not
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
        """Constructor arguments of this metric."""
        return {"sigma": self.sigma, "draws": self.draws}


class ShiftConsistency(Metric):
    """Log odds that the predicted class is wrong, averaged over shifted versions of the image.

    Args:
        pixels: length of the circular shifts up, down, left and right.

    Source:
        Consistency under transformations: Tian, Yang, Cai (2018), "Detecting adversarial examples
        through image transformation".
    """

    name = "shift_consistency"
    family = "shift"
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
        """Constructor arguments of this metric."""
        return {"pixels": self.pixels}


SqueezingMeasure = Literal["probabilities", "logits"]


class Squeezing(Metric):
    r"""Change of the output under feature squeezing of the image.

    .. math:: \sum_j | p_j(x) - p_j(s(x)) |
        \quad\text{or}\quad
        \max_{j \ne c} \bigl[(z_j - z_c)(s(x)) - (z_j - z_c)(x)\bigr]

    The first, in probabilities, detects attacks that barely cross the boundary; the second, in
    logits, also detects those on which the classifier is very confident.

    Args:
        squeezer: "bits" rounds pixels to ``size`` bits; "median" takes the median of ``size`` x
            ``size`` pixels, per channel. The window of an even size extends one pixel less to the
            right and down, and of its two middle pixels the larger one is taken.
        size: number of bits, at least 1, or the width of the window in pixels, at least 2.
        measure: "probabilities" or "logits".

    Notes:
        One bit suits black-and-white images such as digits, and finds little on photographs, for
        which a median of 2 x 2 pixels is better.
        The surrogate gradient treats the squeezer as the identity (BPDA). Metrics with the same
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
        check_count(size, "a size", least=1 if squeezer == "bits" else 2)
        if squeezer not in ("bits", "median") or measure not in get_args(SqueezingMeasure):
            message = (
                'expected the squeezer "bits" or "median", and the measure "probabilities" or '
                f'"logits", got {squeezer!r} and {measure!r}; correct them'
            )
            raise InputError(message)
        self.squeezer, self.size = squeezer, size
        self.measure: SqueezingMeasure = measure
        self.by_class = measure == "logits"
        view = f"{size}bit" if squeezer == "bits" else f"median{size}"
        self.name = f"squeezing_{view}" + ("_logits" if measure == "logits" else "")
        # Equal squeezers share one view object, so that it is run only once.
        self._view = _squeezed(squeezer, size)
        self.needs = Needs(views=(self._view,))

    def forward(self, seen: Observation) -> Tensor:
        """The change for each image, float64 ``(N,)``; in [0, 2] for probabilities."""
        return self._moved(seen, seen.views[self._view].logits)

    def smooth(self, seen: Observation) -> Tensor:
        """The same metric, with gradients as if squeezing were the identity."""
        images, squeezed = seen.images, seen.views[self._view].images.detach()
        return self._moved(seen, seen.classifier(images + (squeezed - images).detach()))

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
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
    """Logits minus the logit of the given class, float64 ``(N, classes)``."""
    wide = logits.double()
    return wide - wide.gather(1, classes.unsqueeze(1))


def _check_floating(images: Tensor) -> None:
    """Raise on integer inputs, which cannot be noised or rounded."""
    if not images.is_floating_point():
        message = (
            "expected floating-point inputs for consistency metrics, got "
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
    before, after = size // 2, (size - 1) // 2
    # A side without enough pixels cannot be reflected.
    mode = "reflect" if min(images.shape[2:]) > before else "replicate"
    padded = functional.pad(images, (before, after) * 2, mode=mode)
    windows: Tensor = padded.unfold(2, size, 1).unfold(3, size, 1).flatten(4)
    return windows.kthvalue(size**2 // 2 + 1, -1).values
