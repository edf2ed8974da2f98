"""How close an input lies to the training data of a class, in the space of the features.

Both metrics are fitted on features of clean training images and then score features of any
images against the class that each was given.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from leery._checks import all_finite, check_labels, check_seed
from leery.errors import InputError, NotFittedError
from leery.metrics._bandwidth import likeliest_bandwidth

__all__ = ["BandwidthRule", "ClassKL", "KernelDensity", "Pmf", "Precision"]

Pmf = Literal["softmax", "sum"]

BandwidthRule = Literal["likelihood", "likelihood-per-class"]

Precision = Literal["float32", "float16"]

_BANDWIDTHS = (1e-100, 1e100)
"""Of other bandwidths, or of their inverses, the squares are no numbers."""

_QUERIES, _REFERENCES = 256, 2048
"""Of a block of exponents, which stays in the processor's cache (4 MiB) until it is summed."""

_CONVERTED = 512
"""References that are converted to float64 at a time, which have to stay in the cache too."""

_MOST_RESIDENT = 2**26
"""Numbers of references that are held in float64 (512 MiB); more are converted at each use, which
takes half as long again where queries are few and a twentieth where they are many."""


class KernelDensity:
    r"""The log density of an input's features under a Gaussian kernel estimate of its class.

    .. math::
        \log \frac1{n_c} \sum_{x_i \in X_c} \frac{\exp(-\|h - h_i\|^2 / 2 b^2)}
        {(2 \pi b^2)^{D/2}}

    Larger is closer to the training data. It is scikit-learn's ``KernelDensity`` with a Gaussian
    kernel, one estimate a class, computed as matrix products in float64 on any device.

    Args:
        bandwidth: b, in the units of the features, above 0; or "likelihood", the b under which
            the training features are most likely when one is left out, or
            "likelihood-per-class", one such b a class.
        references: at most so many training points a class are kept, drawn at random; all by
            default. The density is then that of the points that are kept.
        precision: "float32" keeps the training features as they are; "float16" halves their
            size in a file, at 11 bits a number; scoring holds them in float64 either way.
        seed: of the draw of the references.

    Attributes:
        bandwidth: as given.
        reference_: the training features of each class, ``{class: (n_c, D)}``, once fitted.
        bandwidth_: b of each class, once fitted.

    Notes:
        scikit-learn's own trees bound sums between their leaves and lose the far tails: a log
        density of -4,000 can be off by as much. With all points in one leaf (``leaf_size=n``)
        they sum exactly, and it is this sum that is computed here.

    Source:
        Feinman et al. (2017), arXiv:1703.00410; the paper's eq. 9. Departures: the paper prints
        ``exp(-d^2 / sigma^2)``, but its bandwidths come from Feinman's procedure, which is
        scikit-learn's; and the logarithm of the mean takes the place of the sum.

    Example:
        >>> features, labels = torch.zeros(3, 1), torch.tensor([0, 0, 0])
        >>> kde = KernelDensity(bandwidth=1.0).fit(features, labels)
        >>> kde.score(torch.zeros(1, 1), torch.tensor([0]))
        tensor([-0.9189], dtype=torch.float64)
    """

    def __init__(
        self,
        bandwidth: float | BandwidthRule = "likelihood",
        *,
        references: int | None = None,
        precision: Precision = "float32",
        seed: int = 0,
    ) -> None:
        _check_bandwidth(bandwidth)
        if references is not None and references < 1:
            message = f"expected at least 1 reference a class, got {references}; pass more or None"
            raise InputError(message)
        if precision not in get_args(Precision):
            message = f'expected precision "float32" or "float16", got {precision!r}; name one'
            raise InputError(message)
        check_seed(seed)
        self.bandwidth = bandwidth if isinstance(bandwidth, str) else float(bandwidth)
        self.references = references
        self.precision: Precision = precision
        self.seed = seed
        self.reference_: dict[int, Tensor] = {}
        self.bandwidth_: dict[int, float] = {}
        self._centre: dict[int, Tensor] = {}
        self._squares: dict[int, Tensor] = {}
        self._resident: dict[int, Tensor] = {}

    def fit(self, features: Tensor, labels: Tensor) -> Self:
        """Keep the training features of each class.

        Args:
            features: float ``(N, D)``.
            labels: int ``(N,)``, in 0, 1, ...

        Raises:
            InputError: when they do not fit or are not finite.
        """
        _check_features(features)
        check_labels(labels, len(features))
        features = features.detach()
        generator = torch.Generator().manual_seed(self.seed)
        groups = {
            label: self._kept(features[labels == label], generator)
            for label in labels.unique().tolist()
        }
        tensors = {str(label): group for label, group in groups.items()}
        if self.bandwidth == "likelihood":
            tensors["bandwidth"] = torch.full(
                (len(groups),), likeliest_bandwidth(groups), dtype=torch.float64
            )
        elif self.bandwidth == "likelihood-per-class":
            found = [likeliest_bandwidth({label: group}) for label, group in groups.items()]
            tensors["bandwidth"] = torch.tensor(found, dtype=torch.float64)
        return self.restore(tensors)

    def score(self, features: Tensor, classes: Tensor) -> Tensor:
        """The log density of each row under the estimate of its class.

        Args:
            features: float ``(N, D)``.
            classes: int ``(N,)``, the class each row is held against.

        Returns:
            float64 ``(N,)``; larger is closer.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when they do not fit, or a class had no training features.
        """
        _check_scored(self.reference_, features, classes, "KernelDensity")
        self._follow(features.device)
        result = torch.empty(len(features), dtype=torch.float64, device=features.device)
        for label, rows in _by_class(classes):
            result = result.index_put((rows,), self._log_density(features[rows], label))
        return result

    def to_tensors(self) -> dict[str, Tensor]:
        """The fitted state: the training features of each class, by class number.

        And "bandwidth", float64 ``(classes,)`` in their order, where it was not a number.
        """
        tensors = {str(label): reference for label, reference in self.reference_.items()}
        if isinstance(self.bandwidth, str):
            found = [self.bandwidth_[label] for label in self.reference_]
            tensors["bandwidth"] = torch.tensor(found, dtype=torch.float64)
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over what :meth:`to_tensors` gave.

        Raises:
            InputError: when features or bandwidths are missing or impossible.
        """
        labels = sorted(int(name) for name in tensors if name != "bandwidth")
        for label in labels:
            _check_features(tensors[str(label)])
        _check_widths("features", [tensors[str(label)] for label in labels])
        self.reference_ = {label: tensors[str(label)] for label in labels}
        if isinstance(self.bandwidth, str):
            found = tensors["bandwidth"].double().tolist() if "bandwidth" in tensors else []
        else:
            found = [self.bandwidth] * len(labels)
        if len(found) != len(labels):
            message = f"expected {len(labels)} bandwidths, one a class, got {len(found)}; fit again"
            raise InputError(message)
        for bandwidth in found:
            _check_bandwidth(bandwidth)
        self.bandwidth_ = dict(zip(labels, found, strict=True))
        resident = sum(map(Tensor.numel, self.reference_.values())) <= _MOST_RESIDENT
        self._centre = {label: _mean(reference) for label, reference in self.reference_.items()}
        self._resident = {label: self._whole(label) for label in labels if resident}
        self._squares = {label: self._lengths(label) for label in labels}
        return self

    def _kept(self, group: Tensor, generator: torch.Generator) -> Tensor:
        """What is kept of a class's training features."""
        if self.references is not None and len(group) > self.references:
            chosen = torch.randperm(len(group), generator=generator)[: self.references]
            group = group[chosen.sort().values.to(group.device)]
        if self.precision == "float32":
            return group
        half = group.half()
        if not all_finite(half):
            message = (
                f"expected features within 65504 for float16, got {float(group.abs().max()):g}; "
                'keep them with precision="float32"'
            )
            raise InputError(message)
        return half

    def _log_density(self, features: Tensor, label: int) -> Tensor:
        """The sum over the references is taken block by block, in logarithms."""
        queries = features.double() - self._centre[label]
        half = 1 / (2 * self.bandwidth_[label] ** 2)
        chunks = queries.split(_QUERIES)
        size = self._block_size(label)
        heights = (self._squares[label] * -half).split(size)
        exponents = queries.new_empty(len(chunks[0]) * size)
        parts = []
        for rows, own in zip(self._blocks(label), heights, strict=True):
            points = rows.to(queries.device).T
            found = [_log_sum_exp(chunk, points, own, 2 * half, exponents) for chunk in chunks]
            parts.append(torch.cat(found))
        count = len(self.reference_[label])
        sums = torch.stack(parts).logsumexp(0) - half * _squared_lengths(queries)
        # Rounding must not put a query nearer than at no distance from all of them.
        sums = sums.clamp_max(math.log(count))
        return sums - math.log(count) + features.shape[1] / 2 * math.log(half / math.pi)

    def _follow(self, device: torch.device) -> None:
        """Have what was computed beforehand where the features are; it stays there."""
        for part in (self._centre, self._squares, self._resident):
            part.update({label: tensor.to(device) for label, tensor in part.items()})

    def _block_size(self, label: int) -> int:
        """Of :meth:`_blocks`, in references."""
        return _REFERENCES if label in self._resident else _CONVERTED

    def _blocks(self, label: int) -> Iterator[Tensor]:
        """The references of a class relative to their mean, in float64.

        Distances do not change when all points move; short vectors lose fewer digits in
        ``|x|^2 + |y|^2 - 2 x.y``. A block may hold only until the next is asked for.
        """
        if label in self._resident:
            yield from self._resident[label].split(self._block_size(label))
            return
        for block in _in_float64(self.reference_[label]):
            yield block.sub_(self._centre[label].to(block.device))

    def _whole(self, label: int) -> Tensor:
        """All of :meth:`_blocks` at once."""
        return self.reference_[label].double() - self._centre[label]

    def _lengths(self, label: int) -> Tensor:
        """The squared distance of each reference of a class from their mean."""
        return torch.cat([_squared_lengths(rows) for rows in self._blocks(label)])


class ClassKL:
    r"""The divergence of an input's features from the mean of its class, both as probabilities.

    .. math:: KL(P \| Q_c) = \sum_i P_i \log \frac{P_i}{Q_{c,i}}

    P is the feature vector turned into a probability vector, and Q_c the mean of those vectors
    over the training images of class c. Larger is farther from the training data.

    Args:
        pmf: how features become probabilities: "softmax", or "sum" (divide by the sum; the
            features must not be negative).

    Attributes:
        pmf: as given.
        means_: Q_c of each class, ``{class: (D,)}`` in float64, once fitted.

    Notes:
        Probabilities below 1e-12 (a unit that is zero in all of a class) count as 1e-12, so that
        the divergence is finite, at most log 1e12 = 27.6. With "sum", a vector of zeros has no
        direction and counts as uniform.

    Source:
        Tuna, Catak, Eskil (2020), eq. 10-12, which leave the conversion to probabilities open.

    Example:
        >>> features, labels = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
        >>> kl = ClassKL("sum").fit(features, labels)
        >>> kl.score(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        tensor([0.6931], dtype=torch.float64)
    """

    floor = 1e-12
    """The smallest probability that counts as itself."""

    def __init__(self, pmf: Pmf = "softmax") -> None:
        if pmf not in get_args(Pmf):
            message = f'expected pmf "softmax" or "sum", got {pmf!r}; name one of the two'
            raise InputError(message)
        self.pmf: Pmf = pmf
        self.means_: dict[int, Tensor] = {}

    def fit(self, features: Tensor, labels: Tensor) -> Self:
        """Average the probability vectors of each class.

        Args:
            features: float ``(N, D)``.
            labels: int ``(N,)``, in 0, 1, ...

        Raises:
            InputError: when they do not fit, are not finite, or negative with ``pmf="sum"``.
        """
        _check_features(features)
        check_labels(labels, len(features))
        vectors = self._probabilities(features.detach())
        self.means_ = {int(label): vectors[labels == label].mean(0) for label in labels.unique()}
        return self

    def score(self, features: Tensor, classes: Tensor) -> Tensor:
        """The divergence of each row from the mean of its class.

        Args:
            features: float ``(N, D)``.
            classes: int ``(N,)``, the class each row is held against.

        Returns:
            float64 ``(N,)``, nats, in [0, 27.6]; larger is farther.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when they do not fit, or a class had no training features.
        """
        _check_scored(self.means_, features, classes, "ClassKL")
        result = torch.empty(len(features), dtype=torch.float64, device=features.device)
        vectors = self._probabilities(features)
        for label, rows in _by_class(classes):
            mean = self.means_[label].to(features.device).clamp_min(self.floor)
            own = vectors[rows]
            terms = torch.special.xlogy(own, own) - own * mean.log()
            result = result.index_put((rows,), terms.sum(1))
        return result.clamp_min(0)

    def to_tensors(self) -> dict[str, Tensor]:
        """The fitted state: the mean probability vector of each class, by class number."""
        return {str(label): mean for label, mean in self.means_.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over what :meth:`to_tensors` gave.

        Raises:
            InputError: when the means are no vectors of one width.
        """
        for mean in tensors.values():
            _check_features(mean.unsqueeze(0))
        _check_widths("means", list(tensors.values()))
        self.means_ = {int(label): mean for label, mean in tensors.items()}
        return self

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


def _log_sum_exp(
    queries: Tensor, points: Tensor, heights: Tensor, scale: float, memory: Tensor
) -> Tensor:
    """``logsumexp(heights + scale * queries @ points, 1)``, computed in the given memory.

    Where derivatives are asked for, in memory of its own, and so are the points.
    """
    followed = queries.requires_grad and torch.is_grad_enabled()
    if followed or torch._C._are_functorch_transforms_active():  # noqa: SLF001 - no other way
        return torch.addmm(heights, queries, points.clone(), alpha=scale).logsumexp(1)
    block = memory[: len(queries) * points.shape[1]].view(len(queries), -1)
    torch.addmm(heights, queries, points, alpha=scale, out=block)
    largest = block.amax(1, keepdim=True)
    return block.sub_(largest).exp_().sum(1).log_().add_(largest.squeeze(1))


def _squared_lengths(rows: Tensor) -> Tensor:
    """Of rows ``(N, D)``, without a copy of them."""
    return torch.einsum("nd,nd->n", rows, rows)


def _mean(points: Tensor) -> Tensor:
    """Of rows, in float64."""
    return torch.stack([block.sum(0) for block in _in_float64(points)]).sum(0) / len(points)


def _in_float64(points: Tensor) -> Iterator[Tensor]:
    """A block of rows after the other, all in the same memory.

    Memory of its own for each would be cut up by the small results kept between them: a process
    then grows by as much as all blocks together.
    """
    memory = points.new_empty((min(len(points), _CONVERTED), points.shape[1]), dtype=torch.float64)
    for block in points.split(_CONVERTED):
        yield memory[: len(block)].copy_(block)


def _by_class(classes: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each class that occurs, with the indices of its rows."""
    for label in classes.unique().tolist():
        yield label, torch.nonzero(classes == label).squeeze(1)


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


def _check_features(features: Tensor) -> None:
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        message = f"expected features as a floating-point torch.Tensor, got {kind}; convert them"
        raise InputError(message)
    if features.ndim != 2 or 0 in features.shape:  # noqa: PLR2004 - images and units
        message = (
            f"expected features (N, D) with N and D of at least 1, got {tuple(features.shape)}; "
            "flatten them with features.flatten(1)"
        )
        raise InputError(message)
    if not all_finite(features):
        message = "expected finite features, got NaN or infinity; check the images and the model"
        raise InputError(message)


def _check_widths(what: str, tensors: Sequence[Tensor]) -> None:
    widths = sorted({tensor.shape[-1] for tensor in tensors})
    if len(widths) > 1:
        message = f"expected {what} of one width, got {' and '.join(map(str, widths))}; fit again"
        raise InputError(message)


def _check_scored(fitted: dict[int, Tensor], features: Tensor, classes: Tensor, what: str) -> None:
    if not fitted:
        message = f"expected a fitted {what}, got one that is not; call fit(features, labels) first"
        raise NotFittedError(message)
    _check_features(features)
    check_labels(classes, len(features))
    width = next(iter(fitted.values())).shape[-1]
    if features.shape[1] != width:
        message = (
            f"expected features of width {width} as in fit, got {features.shape[1]}; "
            "use the same layer"
        )
        raise InputError(message)
    missing: Sequence[int] = sorted(set(classes.unique().tolist()) - set(fitted))
    if missing:
        message = (
            f"expected classes out of {sorted(fitted)}, got {missing} too; "
            "fit with training images of every class"
        )
        raise InputError(message)
