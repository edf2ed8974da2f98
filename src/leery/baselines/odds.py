"""The odds are odd: log odds under noise, standardised per pair of classes, of Roth et al."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from leery._checks import check_count
from leery.baselines._base import Labelled, MetricBaseline
from leery.errors import InputError
from leery.metrics import Metric, NoiseConsistency
from leery.observation import Needs, Observation

__all__ = ["Odds", "StandardisedOdds"]


class StandardisedOdds(Metric):
    r"""Largest standardised increase, under noise, of another logit relative to the predicted one.

    .. math:: \max_{j \ne c} \frac1S \sum_\sigma
        \frac{g_{c,j,\sigma}(x) - \mu_{c,j,\sigma}}{s_{c,j,\sigma}},
        \qquad g_{c,j,\sigma}(x) = \frac1V \sum_v
        \bigl[(z_j - z_c)(x + \sigma n_v) - (z_j - z_c)(x)\bigr]

    with the mean and standard deviation of g over training images whose predicted class is c, the
    logits z, S standard deviations of the noise and V noisy versions for each.

    Args:
        sigmas: standard deviations of the noise, as fractions of the pixel range.
        draws: number of noisy versions per standard deviation.

    Attributes:
        counts: float64 ``(classes,)``, number of training images per predicted class.
        sums: float64 ``(sigmas, classes, classes)``, sums of g by predicted and other class.
        squares: float64, sums of the squares of g.

    Notes:
        If a class was predicted for fewer than two training images, the metric is 0 for images of
        that predicted class. A standard deviation below 1e-6 counts as 1e-6.

    Source:
        Roth, Kilcher, Hofmann (2019), arXiv:1902.04818, eq. 5 to 8, with a mean over the noise
        strengths as in the authors' code. Departures: Gaussian noise only, 8 draws instead of 256,
        and the same noise for every image.
    """

    name = "standardised_odds"
    family = "consistency"
    direction = "larger"

    counts: Tensor
    sums: Tensor
    squares: Tensor

    def __init__(self, sigmas: Sequence[float] = (0.05, 0.1, 0.2), *, draws: int = 8) -> None:
        super().__init__()
        if not sigmas or not all(sigma > 0 for sigma in sigmas):
            message = f"expected sigmas above 0, got {list(sigmas)}; correct them"
            raise InputError(message)
        self.sigmas = tuple(float(sigma) for sigma in sigmas)
        self.draws = check_count(draws, "draws")
        self._views = [NoiseConsistency(sigma, draws=draws).needs.views for sigma in self.sigmas]
        self.needs = Needs(views=tuple(view for views in self._views for view in views))
        for name in ("counts", "sums", "squares"):
            self.register_buffer(name, None)

    def update(self, seen: Observation, labels: Tensor) -> None:
        """Add the changes of a part of the training data."""
        del labels
        moved = self._moved(seen)
        classes = moved.shape[2]
        rows = nn.functional.one_hot(seen.predicted, classes).double()
        self._add(
            rows.sum(0),
            torch.einsum("nc,snj->scj", rows, moved),
            torch.einsum("nc,snj->scj", rows, moved.square()),
        )

    def merge(self, other: Self) -> None:
        """Add the sums that another metric of this class learned from the next part."""
        if other.counts is not None:
            self._add(other.counts, other.sums, other.squares)

    def forward(self, seen: Observation) -> Tensor:
        """The largest standardised change of each image, float64 ``(N,)``."""
        moved = self._moved(seen)
        counts, sums, squares = (
            part.to(moved.device) for part in (self.counts, self.sums, self.squares)
        )
        total = counts.clamp_min(1).view(1, -1, 1)
        mean = sums / total
        spread = (squares / total - mean.square()).clamp_min(0).sqrt().clamp_min(1e-6)
        standardised = (moved - mean[:, seen.predicted]) / spread[:, seen.predicted]
        own = nn.functional.one_hot(seen.predicted, moved.shape[2]).bool()
        few = (counts < 2)[seen.predicted]  # noqa: PLR2004 - a standard deviation
        found: Tensor = standardised.mean(0).masked_fill(own, -torch.inf).amax(1)
        return found.masked_fill(few, 0.0)

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {"sigmas": self.sigmas, "draws": self.draws}

    def _moved(self, seen: Observation) -> Tensor:
        """Mean change of every class's logit relative to the predicted one, ``(sigmas, N, C)``."""
        against = partial(_against, classes=seen.predicted)
        before = against(seen.logits)
        return torch.stack(
            [
                torch.stack([against(seen.views[view].logits) for view in views]).mean(0) - before
                for views in self._views
            ]
        )

    def _add(self, counts: Tensor, sums: Tensor, squares: Tensor) -> None:
        if self.counts is None:
            self.counts, self.sums, self.squares = counts, sums, squares
        else:
            self.counts = self.counts + counts
            self.sums, self.squares = self.sums + sums, self.squares + squares


def _against(logits: Tensor, classes: Tensor) -> Tensor:
    wide = logits.double()
    return wide - wide.gather(1, classes.unsqueeze(1))


class Odds(MetricBaseline):
    """Largest standardised increase, under noise, of another logit relative to the predicted one.

    Args:
        model: the classifier.
        sigmas: standard deviations of the noise, as fractions of the pixel range.
        draws: number of noisy versions per standard deviation.
        training_images: number of training images that give means and standard deviations.
        settings: keyword arguments of :class:`leery.Detector`.

    Source:
        Roth, Kilcher, Hofmann (2019), arXiv:1902.04818.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sigmas: Sequence[float] = (0.05, 0.1, 0.2),
        draws: int = 8,
        training_images: int = 5000,
        **settings: Any,  # noqa: ANN401 - those of Detector
    ) -> None:
        super().__init__(model, **settings)
        self._metric = StandardisedOdds(sigmas, draws=draws)
        self._count = training_images

    def training_part(self, train: Labelled) -> Labelled:
        """Random training images, because evenly spaced ones can all be of one class."""
        images, labels = train
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        rows = order[: self._count].sort().values
        return images[rows], labels[rows]

    def metrics_for(self, images: Tensor) -> Sequence[str | Metric]:
        """The standardised odds."""
        del images
        return [self._metric]

    def fused(self, values: Tensor, predicted: Tensor) -> Tensor:
        """The metric itself."""
        del predicted
        return values[:, 0]
