"""Metrics of closeness to the training data of a class, in feature space.

Both metrics are fitted on features of clean training images and score the features of any image
against a given class.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from leery._checks import all_finite, check_labels
from leery.errors import InputError
from leery.metrics._bandwidth import likeliest_bandwidth
from leery.metrics._base import Metric
from leery.metrics._points import (
    TrainingPoints,
    check_all_classes,
    check_features,
    check_scored,
    rows_by_class,
)
from leery.observation import HEAD, Needs, Observation
from leery.tuning import CONVERTED, MAX_RESIDENT, QUERIES, REFERENCES

__all__ = ["BandwidthRule", "ClassKL", "KernelDensity", "Pmf", "Precision"]

Pmf = Literal["softmax", "sum"]

BandwidthRule = Literal["likelihood", "likelihood-per-class"]

Precision = Literal["float32", "float16"]

_BANDWIDTHS = (1e-100, 1e100)
"""Range of bandwidths; squares of others, or of their inverses, overflow or vanish."""


class KernelDensity(TrainingPoints):
    r"""The log density of an input's features under a Gaussian kernel estimate of its class.

    .. math::
        \log \frac1{n_c} \sum_{x_i \in X_c} \frac{\exp(-\|h - h_i\|^2 / 2 b^2)}
        {(2 \pi b^2)^{D/2}}

    Larger is closer to the training data. It is scikit-learn's ``KernelDensity`` with a Gaussian
    kernel, one estimate per class, computed as matrix products in float64 on any device.

    Args:
        bandwidth: b, in the units of the features, above 0; or "likelihood", which maximizes the
            leave-one-out likelihood of the training features, or "likelihood-per-class", which does
            so per class.
        references: maximum number of training points kept per class; by default all. They are
            selected by a hash of their content, so that their order does not matter.
        precision: "float32" keeps the training features as they are; "float16" halves their size in
            the detector file, with 11 significant bits per element. Scoring uses float64 in both
            cases.
        seed: seed of that hash.
        layer: layer whose flattened output is the features.

    Attributes:
        points: float ``(n, D)``, the stored features, class by class.
        counts: int64 ``(classes,)``, number of stored points per class.
        bandwidths: float64 ``(classes,)``, b per class.

    Notes:
        scikit-learn's trees approximate the sum over leaves and are inaccurate in the far tails: a
        log density of -4,000 can be off by as much. With all points in one leaf (``leaf_size=n``)
        the sum is exact, and this metric computes that exact sum.

    Source:
        Feinman et al. (2017), arXiv:1703.00410; Tuna, Catak, Eskil (2020), eq. 9. Departures: that
        paper prints ``exp(-d^2 / sigma^2)``, but its bandwidths come from Feinman's procedure,
        which is scikit-learn's; and the logarithm of the mean replaces the sum.

    Example:
        >>> features, labels = torch.zeros(3, 1), torch.tensor([0, 0, 0])
        >>> kde = KernelDensity(bandwidth=1.0).fit(features, labels)
        >>> kde.score(torch.zeros(1, 1), torch.tensor([0]))
        tensor([-0.9189], dtype=torch.float64)
    """

    name = "kernel_density"
    family = "closeness"
    direction = "smaller"

    bandwidths: Tensor

    def __init__(
        self,
        bandwidth: float | BandwidthRule = "likelihood",
        *,
        references: int | None = None,
        precision: Precision = "float32",
        seed: int = 0,
        layer: str = HEAD,
    ) -> None:
        super().__init__(references, seed, layer)
        _check_bandwidth(bandwidth)
        if precision not in get_args(Precision):
            message = f'expected precision "float32" or "float16", got {precision!r}; choose one'
            raise InputError(message)
        self.bandwidth = bandwidth if isinstance(bandwidth, str) else float(bandwidth)
        self.precision: Precision = precision
        self.register_buffer("bandwidths", None)
        self._ready: dict[int, _Estimate] = {}

    def fit(self, features: Tensor, labels: Tensor) -> Self:
        """Store the training features of each class.

        Args:
            features: float ``(N, D)``.
            labels: int ``(N,)``, in 0, 1, ...

        Raises:
            InputError: when they do not fit or are not finite.
        """
        self._parts = {}
        self._add(features, labels)
        self.finish()
        return self

    def finish(self) -> None:
        """Select the stored features and determine the bandwidth."""
        groups = self._settled()
        bandwidths = torch.ones(max(groups) + 1, dtype=torch.float64)
        if self.bandwidth == "likelihood":
            bandwidths.fill_(likeliest_bandwidth(groups))
        elif self.bandwidth == "likelihood-per-class":
            for label, group in groups.items():
                bandwidths[label] = likeliest_bandwidth({label: group})
        else:
            bandwidths.fill_(self.bandwidth)
        self._keep(groups)
        self.bandwidths = bandwidths
        self._prepare_estimates()

    def forward(self, seen: Observation) -> Tensor:
        """The log density of each image's features under the estimate of its predicted class."""
        return self.score(seen.layers[self.layer].flatten(1), seen.predicted)

    def score(self, features: Tensor, classes: Tensor) -> Tensor:
        """The log density of each row under the estimate of its class.

        Args:
            features: float ``(N, D)``.
            classes: int ``(N,)``, the class to which each row is compared.

        Returns:
            float64 ``(N,)``; larger is closer.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when they do not fit, or a class had no training features.
        """
        check_scored(self._ready, self.points, features, classes, "KernelDensity")
        result = torch.empty(len(features), dtype=torch.float64, device=features.device)
        for label, rows in rows_by_class(classes):
            self._ready[label].follow(features.device)
            result = result.index_put((rows,), self._log_density(features[rows], label))
        return result

    @property
    def bandwidth_(self) -> dict[int, float]:
        """The bandwidth of each class; empty before the fit."""
        return {label: float(self.bandwidths[label]) for label in self.reference_}

    def with_bandwidth(self, bandwidth: float) -> "KernelDensity":
        """A copy of the fitted density with another bandwidth.

        Raises:
            InputError: when the bandwidth is outside its range.
        """
        other = KernelDensity(bandwidth, precision=self.precision, layer=self.layer)
        widths = torch.full_like(self.bandwidths, float(bandwidth))
        return other.restore({**self.state_dict(), "bandwidths": widths})

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        names = ("bandwidth", "references", "precision", "seed", "layer")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Load the state of a fitted density.

        Raises:
            InputError: when features or bandwidths are missing or invalid.
        """
        super().restore(state)
        counts, bandwidths = self.counts, self.bandwidths
        if bandwidths.shape != counts.shape or bandwidths.dtype != torch.float64:
            message = (
                f"expected {len(counts)} bandwidths, one per class, got "
                f"{tuple(bandwidths.shape)}; fit again"
            )
            raise InputError(message)
        for bandwidth in bandwidths.tolist():
            _check_bandwidth(bandwidth)
        self._prepare_estimates()
        return self

    def _stored(self, group: Tensor) -> Tensor:
        if self.precision == "float32":
            return group
        half = group.half()
        if not all_finite(half):
            message = (
                f"expected features within 65504 for float16, got {float(group.abs().max()):g}; "
                'store them with precision="float32"'
            )
            raise InputError(message)
        return half

    def _prepare_estimates(self) -> None:
        resident = self.points.numel() <= MAX_RESIDENT
        self._ready = {
            label: _Estimate(group, resident=resident) for label, group in self.reference_.items()
        }

    def _log_density(self, features: Tensor, label: int) -> Tensor:
        """Log density, with the sum over references computed block by block as a log-sum-exp."""
        estimate = self._ready[label]
        queries = features.double() - estimate.centre
        half = 1 / (2 * float(self.bandwidths[label]) ** 2)
        chunks = queries.split(QUERIES)
        size = estimate.block_size(len(chunks[0]))
        heights = (estimate.squares * -half).split(size)
        exponents = queries.new_empty(len(chunks[0]) * size)
        followed, parts = _is_followed(queries), []
        for rows, own in zip(estimate.blocks(size), heights, strict=True):
            points = rows.to(queries.device).T
            if followed and not estimate.lasts:
                points = points.clone()
            found = [_log_sum_exp(chunk, points, own, 2 * half, exponents) for chunk in chunks]
            parts.append(torch.cat(found) if len(found) > 1 else found[0])
        sums = torch.stack(parts).logsumexp(0) if len(parts) > 1 else parts[0]
        count, width = estimate.points.shape
        # Rounding must not give more than the density at distance zero from every reference.
        sums = (sums - half * queries.square().sum(1)).clamp_max(math.log(count))
        return sums - math.log(count) + width / 2 * math.log(half / math.pi)


class _Estimate:
    """The references of a class, with quantities that are computed once.

    Args:
        points: float ``(n, D)``.
        resident: True to also hold them in float64, relative to their mean.
    """

    def __init__(self, points: Tensor, *, resident: bool) -> None:
        self.points = points
        self.centre = _mean(points)
        self._resident = points.double() - self.centre if resident else None
        blocks = self.blocks(self.block_size(QUERIES))
        self.squares = torch.cat([_squared_lengths(rows) for rows in blocks])

    @property
    def lasts(self) -> bool:
        """True if a block stays valid when the next one is requested."""
        return self._resident is not None

    def block_size(self, queries: int) -> int:
        """Number of references in a block; larger for fewer queries."""
        if self._resident is None:
            return CONVERTED
        return min(len(self.points), REFERENCES * max(1, QUERIES // queries))

    def follow(self, device: torch.device) -> None:
        """Move the computed tensors to the device of the features, where they stay."""
        if self.centre.device != device:
            self.centre, self.squares = self.centre.to(device), self.squares.to(device)
            self._resident = None if self._resident is None else self._resident.to(device)

    def blocks(self, size: int) -> Iterator[Tensor]:
        """The references relative to their mean, in float64.

        Centring does not change distances, and ``|x|^2 + |y|^2 - 2 x.y`` loses fewer digits for
        short vectors. Unless :attr:`lasts`, a block is valid only until the next one.
        """
        if self._resident is not None:
            yield from self._resident.split(size)
            return
        for block in _in_float64(self.points):
            yield block.sub_(self.centre.to(block.device))


class ClassKL(Metric):
    r"""KL divergence of an input's features, as probabilities, from the mean of its class.

    .. math:: KL(P \| Q_c) = \sum_i P_i \log \frac{P_i}{Q_{c,i}}

    P is the feature vector turned into a probability vector, and Q_c the mean of those vectors
    over the training images of class c. Larger is farther from the training data.

    Args:
        pmf: conversion of features to probabilities: "softmax", or "sum" (division by the sum;
            features must not be negative).
        layer: layer whose flattened output is the features.

    Attributes:
        means: float64 ``(classes, D)``, Q_c per class.

    Notes:
        Probabilities in Q below 1e-12 (as of a unit that is zero for a whole class) are replaced by
        1e-12, so that the divergence is at most log 1e12 = 27.6. With "sum", a vector of zeros is
        treated as uniform.

    Source:
        Tuna, Catak, Eskil (2020), eq. 10-12, which leave the conversion to probabilities open.

    Example:
        >>> features, labels = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
        >>> kl = ClassKL("sum").fit(features, labels)
        >>> kl.score(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        tensor([0.6931], dtype=torch.float64)
    """

    floor = 1e-12
    """Lower limit of the probabilities of the class means."""

    family = "closeness"

    means: Tensor

    def __init__(self, pmf: Pmf = "softmax", *, layer: str = HEAD) -> None:
        super().__init__()
        if pmf not in get_args(Pmf):
            message = f'expected pmf "softmax" or "sum", got {pmf!r}; choose one'
            raise InputError(message)
        self.pmf: Pmf = pmf
        self.layer = layer
        self.name = "kl_divergence" if pmf == "softmax" else "kl_divergence_sum"
        self.needs = Needs(layers=(layer,))
        self.register_buffer("means", None)
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def fit(self, features: Tensor, labels: Tensor) -> Self:
        """Average the probability vectors of each class.

        Args:
            features: float ``(N, D)``.
            labels: int ``(N,)``, in 0, 1, ...

        Raises:
            InputError: when they do not fit, are not finite, or negative with ``pmf="sum"``.
        """
        self._sums, self._counts = {}, {}
        self._add(features, labels)
        self.finish()
        return self

    def update(self, seen: Observation, labels: Tensor) -> None:
        """Add the features of a part of the training data."""
        self._add(seen.layers[self.layer].flatten(1), labels)

    def merge(self, other: Self) -> None:
        """Add the sums and counts of another metric of this class."""
        for label, total in other._sums.items():
            self._accumulate(label, total, other._counts[label])

    def learned(self) -> dict[str, Tensor]:
        """The sums and counts of each class."""
        return {
            "sums": torch.stack(list(self._sums.values())),
            "labels": torch.tensor(list(self._sums)),
            "counts": torch.tensor([self._counts[label] for label in self._sums]),
        }

    def load_learned(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`learned` returned in another process."""
        labels = state["labels"].tolist()
        self._sums = dict(zip(labels, state["sums"], strict=True))
        self._counts = dict(zip(labels, state["counts"].tolist(), strict=True))

    def finish(self) -> None:
        """Compute the means; that of a class without data is NaN."""
        width = next(iter(self._sums.values())).shape[0]
        means = torch.full((max(self._sums) + 1, width), math.nan, dtype=torch.float64)
        for label, total in self._sums.items():
            means[label] = total / self._counts[label]
        self.means = means
        self._sums, self._counts = {}, {}

    def forward(self, seen: Observation) -> Tensor:
        """The divergence of each image's features from the mean of its predicted class."""
        return self.score(seen.layers[self.layer].flatten(1), seen.predicted)

    def score(self, features: Tensor, classes: Tensor) -> Tensor:
        """The divergence of each row from the mean of its class.

        Args:
            features: float ``(N, D)``.
            classes: int ``(N,)``, the class to which each row is compared.

        Returns:
            float64 ``(N,)``, nats, in [0, 27.6]; larger is farther.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when they do not fit, or a class had no training features.
        """
        check_scored(self._known, self.means, features, classes, "ClassKL")
        means = self.means.to(features.device)[classes].clamp_min(self.floor)
        own = self._probabilities(features)
        # Not xlogy, whose derivative at 0 is NaN.
        logs = own.clamp_min(torch.finfo(own.dtype).tiny).log()
        return (own * logs - own * means.log()).sum(1).clamp_min(0)

    @property
    def means_(self) -> dict[int, Tensor]:
        """The mean probability vector of each class, ``{class: (D,)}``; empty before the fit."""
        if self.means is None:
            return {}
        return {label: self.means[label] for label in self._known}

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {"pmf": self.pmf, "layer": self.layer}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Load the state of a fitted divergence.

        Raises:
            InputError: when the means are not float64 vectors.
        """
        super().restore(state)
        if self.means.dtype != torch.float64 or self.means.ndim != 2:  # noqa: PLR2004
            message = (
                f"expected means (classes, D) in float64, got {tuple(self.means.shape)} of "
                f"{self.means.dtype}; fit again"
            )
            raise InputError(message)
        return self

    def check_classes(self, classes: int) -> None:
        """Raise if the mean of a class is missing."""
        for mean in self.means_.values():
            check_features(mean.unsqueeze(0))
        check_all_classes(self.name, self.means_, classes)

    @property
    def _known(self) -> list[int]:
        """The classes that had training data; empty before the fit."""
        if self.means is None:
            return []
        known: list[int] = (~self.means.isnan().all(1)).nonzero().flatten().tolist()
        return known

    def _add(self, features: Tensor, labels: Tensor) -> None:
        check_features(features)
        check_labels(labels, len(features))
        vectors = self._probabilities(features.detach())
        for label in labels.unique().tolist():
            rows = vectors[labels == label]
            self._accumulate(label, rows.sum(0).cpu(), len(rows))

    def _accumulate(self, label: int, total: Tensor, count: int) -> None:
        self._sums[label] = self._sums[label] + total if label in self._sums else total
        self._counts[label] = self._counts.get(label, 0) + count

    def _probabilities(self, features: Tensor) -> Tensor:
        features = features.double()
        if self.pmf == "softmax":
            return features.softmax(1)
        if bool((features < 0).any()):
            message = (
                'expected features of at least 0 with pmf="sum", got '
                f'{float(features.min()):g}; use pmf="softmax" or a layer after a ReLU'
            )
            raise InputError(message)
        total = features.sum(1, keepdim=True)
        uniform = torch.full_like(features, 1 / features.shape[1])
        return torch.where(total > 0, features / total, uniform)


def _is_followed(queries: Tensor) -> bool:
    """True if derivatives are required, in reverse or forward mode."""
    transformed: bool = torch._C._are_functorch_transforms_active()  # noqa: SLF001 - no other way
    return transformed or (queries.requires_grad and torch.is_grad_enabled())


def _log_sum_exp(
    queries: Tensor, points: Tensor, heights: Tensor, scale: float, memory: Tensor
) -> Tensor:
    """``logsumexp(heights + scale * queries @ points, 1)``, computed in a given buffer.

    If derivatives are required, new memory is used instead.
    """
    if _is_followed(queries):
        return torch.addmm(heights, queries, points, alpha=scale).logsumexp(1)
    block = memory[: len(queries) * points.shape[1]].view(len(queries), -1)
    torch.addmm(heights, queries, points, alpha=scale, out=block)
    largest = block.amax(1, keepdim=True)
    return block.sub_(largest).exp_().sum(1).log_().add_(largest.squeeze(1))


def _squared_lengths(rows: Tensor) -> Tensor:
    """Squared Euclidean length of each row of ``(N, D)``, computed without a copy."""
    return torch.einsum("nd,nd->n", rows, rows)


def _mean(points: Tensor) -> Tensor:
    """Mean of the rows, in float64."""
    return torch.stack([block.sum(0) for block in _in_float64(points)]).sum(0) / len(points)


def _in_float64(points: Tensor) -> Iterator[Tensor]:
    """Iterate over blocks of rows in float64, all in the same memory.

    New memory for each block would be fragmented by the small results that are kept in between, and
    the process would grow by the size of all blocks.
    """
    memory = points.new_empty((min(len(points), CONVERTED), points.shape[1]), dtype=torch.float64)
    for block in points.split(CONVERTED):
        yield memory[: len(block)].copy_(block)


def _check_bandwidth(bandwidth: float | str) -> None:
    rules = get_args(BandwidthRule)
    low, high = _BANDWIDTHS
    known = bandwidth in rules if isinstance(bandwidth, str) else low <= bandwidth <= high
    if not known:
        message = (
            f"expected a bandwidth from {low:g} to {high:g} or one of {', '.join(rules)}, got "
            f"{bandwidth!r}; correct it"
        )
        raise InputError(message)
