"""Distances of an input's features from those of the training images of its class.

Features are the flattened output of one layer; use one metric per layer. The name of a metric
includes its layer unless that is the last hidden layer.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from leery._checks import check_count
from leery.errors import InputError
from leery.metrics._base import Metric
from leery.metrics._points import (
    IMAGE,
    TrainingPoints,
    check_features,
    check_scored,
    rows_by_class,
)
from leery.observation import HEAD, Needs, Observation
from leery.tuning import QUERIES

__all__ = ["IMAGE", "Mahalanobis", "MahalanobisKind", "NearestNeighbours"]

MahalanobisKind = Literal["class", "relative", "closest"]

_WIDEST = 4096
"""Largest number of features for which a covariance matrix is stored (128 MiB)."""


def _named(name: str, layer: str) -> str:
    return name if layer == HEAD else f"{name}_{layer.strip('<>')}".replace("/", "_")


class NearestNeighbours(TrainingPoints):
    r"""The mean distance to the nearest training points of the predicted class.

    .. math:: \frac1k \sum_{i \in N_k(h; X_c)} \| h - h_i \|

    Args:
        k: number of neighbours; for a class with fewer points, all of them.
        references: maximum number of training points kept per class, chosen by a hash of their
            content.
        seed: seed of that hash.
        layer: layer whose flattened output is the features; :data:`IMAGE` for the pixels.

    Source:
        Sun et al. (2022), arXiv:2204.06507. Departures: neighbours of the predicted class only, the
        mean of k distances, and features that are not normalised.
    """

    family = "distance"
    direction = "larger"
    by_class = True

    def __init__(
        self, k: int = 10, *, references: int | None = 1000, seed: int = 0, layer: str = HEAD
    ) -> None:
        super().__init__(references, seed, layer)
        self.k = check_count(k, "k")
        self.name = _named("nearest_neighbours", layer)

    def finish(self) -> None:
        """Select the stored features."""
        self._keep(self._settled())

    def forward(self, seen: Observation) -> Tensor:
        """The mean distance of each image, float64 ``(N,)``, in the units of the features."""
        return self.score(self.features(seen), seen.predicted)

    def score(self, features: Tensor, classes: Tensor) -> Tensor:
        """The mean distance of each row to the points of its class.

        Args:
            features: float ``(N, D)``.
            classes: int ``(N,)``.

        Returns:
            float64 ``(N,)``.

        Raises:
            NotFittedError: before the fit.
            InputError: when they do not fit, or a class had no training features.
        """
        check_scored(self.reference_, self.points, features, classes, "NearestNeighbours")
        result = torch.empty(len(features), dtype=torch.float64, device=features.device)
        known = self.reference_
        for label, rows in rows_by_class(classes):
            points = known[label].to(features.device)
            found = [_mean_nearest(part, points, self.k) for part in features[rows].split(QUERIES)]
            result = result.index_put((rows,), torch.cat(found))
        return result

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {name: getattr(self, name) for name in ("k", "references", "seed", "layer")}


def _mean_nearest(queries: Tensor, points: Tensor, k: int) -> Tensor:
    distances = torch.cdist(queries.double(), points.double())
    return distances.topk(min(k, len(points)), dim=1, largest=False).values.mean(1)


class Mahalanobis(Metric):
    r"""Squared Mahalanobis distance to the mean of the predicted class.

    .. math:: (h - \mu_c)^T \Sigma^{-1} (h - \mu_c)

    with one covariance for all classes, shrunk towards its diagonal. The relative kind subtracts
    the squared distance to the mean of all training features under their overall covariance. The
    closest kind takes the class with the smallest distance instead of the predicted one.

    Args:
        kind: "class", "relative" or "closest".
        layer: layer whose output is the features.
        pooled: True to average the output of a convolution ``(N, channels, height, width)`` over
            its positions, False to flatten it.

    Attributes:
        counts: float64 ``(classes,)``, number of training images per class.
        sums: float64 ``(classes, D)``, sums of the features minus ``shift``.
        products: float64 ``(D, D)``, sum of outer products of the features minus ``shift``.
        shift: float64 ``(D,)``, mean of the first part of the training features; subtracting it
            limits rounding error.

    Notes:
        Features are divided by the standard deviations of the covariance, so that their scale does
        not matter; constant ones are left out. The correlation matrix is then shrunk towards the
        identity; the weight of the identity is the oracle approximating shrinkage (OAS) estimate
        for Gaussian data, and at least 1e-3.

    Source:
        Lee et al. (2018), arXiv:1807.03888; relative: Ren et al. (2021), arXiv:2106.09022;
        shrinkage: Chen et al. (2010), "Shrinkage algorithms for MMSE covariance estimation".
    """

    family = "distance"
    direction = "larger"

    counts: Tensor
    sums: Tensor
    products: Tensor
    shift: Tensor

    def __init__(
        self, kind: MahalanobisKind = "class", *, layer: str = HEAD, pooled: bool = False
    ) -> None:
        super().__init__()
        if kind not in get_args(MahalanobisKind):
            message = f'expected kind "class", "relative" or "closest", got {kind!r}; choose one'
            raise InputError(message)
        self.kind: MahalanobisKind = kind
        self.layer = layer
        self.pooled = pooled
        name = "mahalanobis" if kind == "class" else f"{kind}_mahalanobis"
        self.name = _named(f"pooled_{name}" if pooled else name, layer)
        self.needs = Needs(layers=(layer,))
        for name in ("counts", "sums", "products", "shift"):
            self.register_buffer(name, None)
        self._ready: dict[torch.device, tuple[_Whitened, _Whitened]] = {}

    def update(self, seen: Observation, labels: Tensor) -> None:
        """Add the features of a part of the training data."""
        features = self._features(seen)
        check_features(features)
        wide = features.detach().double()
        if wide.shape[1] > _WIDEST:
            message = (
                f"expected at most {_WIDEST} features for {self.name}, got {wide.shape[1]}; use "
                "a layer after a pooling layer"
            )
            raise InputError(message)
        shift = wide.mean(0) if self.shift is None else self.shift
        wide, classes = wide - shift, int(labels.max()) + 1
        self._add(
            torch.bincount(labels, minlength=classes).double(),
            wide.new_zeros(classes, wide.shape[1]).index_add_(0, labels, wide),
            wide.T @ wide,
            shift,
        )

    def merge(self, other: Self) -> None:
        """Add the sums that another metric of this class learned from the next part."""
        if other.counts is None:
            return
        if self.shift is None:
            self._add(other.counts, other.sums, other.products, other.shift)
            return
        move = other.shift - self.shift
        outer = torch.outer(other.sums.sum(0), move)
        products = other.products + outer + outer.T + other.counts.sum() * torch.outer(move, move)
        sums = other.sums + other.counts.unsqueeze(1) * move
        self._add(other.counts, sums, products, self.shift)

    def forward(self, seen: Observation) -> Tensor:
        """The squared distance of each image, float64 ``(N,)``."""
        features = self._features(seen).double()
        if features.device not in self._ready:
            self._ready[features.device] = self._whitened(features.device)
        own, overall = self._ready[features.device]
        centres = (self.sums / self.counts.unsqueeze(1)).to(features.device)
        rows = features - self.shift.to(features.device)
        if self.kind == "closest":
            return torch.stack([own.lengths(rows - centre) for centre in centres]).amin(0)
        found = own.lengths(rows - centres[seen.predicted])
        if self.kind == "class":
            return found
        mean = (self.sums.sum(0) / self.counts.sum()).to(features.device)
        return found - overall.lengths(rows - mean)

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {"kind": self.kind, "layer": self.layer, "pooled": self.pooled}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Load the state of a fitted metric.

        Raises:
            InputError: when the tensors do not match each other.
        """
        super().restore(state)
        classes, width = self.sums.shape if self.sums.ndim == 2 else (0, 0)  # noqa: PLR2004
        shapes = (self.counts.shape, self.products.shape, self.shift.shape)
        if shapes != ((classes,), (width, width), (width,)) or not classes:
            message = f"expected sums of {self.name} of one width, got {shapes}; fit again"
            raise InputError(message)
        self._ready = {}
        try:
            self._whitened(self.products.device)
        except RuntimeError as error:
            message = (
                f"expected products of {self.name} with a positive definite covariance, got "
                "others; fit again"
            )
            raise InputError(message) from error
        return self

    def check_classes(self, classes: int) -> None:
        """Raise if the metric was not fitted on all ``classes`` classes."""
        known = int((self.counts > 0).sum())
        if len(self.counts) != classes or known != classes:
            message = (
                f"expected {self.name} fitted on all {classes} classes, got {known} of "
                f"{len(self.counts)} with training images; fit again"
            )
            raise InputError(message)

    def _features(self, seen: Observation) -> Tensor:
        values = seen.layers[self.layer]
        maps = self.pooled and values.ndim == 4  # noqa: PLR2004 - of a convolution
        return values.flatten(2).mean(2) if maps else values.flatten(1)

    def _add(self, counts: Tensor, sums: Tensor, products: Tensor, shift: Tensor) -> None:
        if self.counts is None:
            self.counts, self.sums, self.products = counts.clone(), sums.clone(), products.clone()
        else:
            classes = max(len(self.counts), len(counts))
            self.counts = _padded(self.counts, classes) + _padded(counts, classes)
            self.sums = _padded(self.sums, classes) + _padded(sums, classes)
            self.products = self.products + products
        self.shift = shift
        self._ready = {}

    def _whitened(self, device: torch.device) -> tuple["_Whitened", "_Whitened"]:
        count = float(self.counts.sum())
        total = self.sums.sum(0)
        between = (self.sums / self.counts.clamp_min(1).unsqueeze(1)).T @ self.sums
        within = (self.products - between) / count
        overall = (self.products - torch.outer(total, total) / count) / count
        return tuple(_Whitened(part.to(device), count) for part in (within, overall))  # type: ignore[return-value]


def _padded(values: Tensor, length: int) -> Tensor:
    return torch.cat([values, values.new_zeros(length - len(values), *values.shape[1:])])


class _Whitened:
    """Mahalanobis norm for a covariance that is shrunk as a correlation matrix.

    Args:
        covariance: float64 ``(D, D)``.
        count: number of points that it was estimated from.
    """

    def __init__(self, covariance: Tensor, count: float) -> None:
        variances = covariance.diagonal().clamp_min(0)
        # For a constant feature, rounding leaves a variance of about 1e-16 of the largest.
        self.alive = variances > 1e-12 * variances.max().clamp_min(torch.finfo(torch.float64).tiny)
        self.scale = variances[self.alive].sqrt()
        correlation = covariance[self.alive][:, self.alive] / torch.outer(self.scale, self.scale)
        share = _oas(correlation, count)
        identity = torch.eye(len(correlation), dtype=torch.float64, device=covariance.device)
        self.root = torch.linalg.cholesky((1 - share) * correlation + share * identity)

    def lengths(self, rows: Tensor) -> Tensor:
        """The squared Mahalanobis norm of each row ``(N, D)``."""
        scaled = rows[:, self.alive] / self.scale
        whitened: Tensor = torch.linalg.solve_triangular(self.root, scaled.T, upper=False)
        return whitened.square().sum(0)


def _oas(correlation: Tensor, count: float) -> float:
    """OAS shrinkage of a matrix of mean trace 1 towards the identity; Chen et al. (2010)."""
    width = len(correlation)
    if width < 2:  # noqa: PLR2004 - nothing to shrink
        return 1e-3
    mean_square = float(correlation.square().mean())
    share = (mean_square + 1) / ((count + 1) * max(mean_square - 1 / width, 1e-12))
    return min(1.0, max(1e-3, share))
