"""Features of training images, kept per class: what metrics of closeness compare with."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from leery._checks import all_finite, check_count, check_labels, check_seed
from leery.errors import InputError, NotFittedError
from leery.metrics._base import Metric
from leery.models import content_hashes
from leery.observation import HEAD, Needs, Observation

__all__ = [
    "IMAGE",
    "TrainingPoints",
    "check_all_classes",
    "check_features",
    "check_scored",
    "check_widths",
    "rows_by_class",
]


IMAGE = "<image>"
"""Stands for the pixels in the place of a layer."""


class TrainingPoints(Metric):
    """A metric that keeps features of training images per class.

    Args:
        references: maximum number of training points kept per class; None for all.
        seed: of the hash of the content by which they are chosen.
        layer: the layer whose values are the features, flattened; :data:`IMAGE` for the pixels.

    Attributes:
        points: float ``(n, D)``, the features that are kept, class by class.
        counts: int64 ``(classes,)``, how many are kept per class.
    """

    points: Tensor
    counts: Tensor

    def __init__(self, references: int | None, seed: int, layer: str = HEAD) -> None:
        super().__init__()
        self.references = (
            None if references is None else check_count(references, "references per class")
        )
        check_seed(seed)
        self.seed = seed
        self.layer = layer
        self.needs = Needs() if layer == IMAGE else Needs(layers=(layer,))
        for name in ("points", "counts"):
            self.register_buffer(name, None)
        self._parts: dict[int, list[Tensor]] = {}

    def update(self, seen: Observation, labels: Tensor) -> None:
        """Keep the features of a part of the training data."""
        self._add(self.features(seen), labels)

    def features(self, seen: Observation) -> Tensor:
        """The features of each image, float ``(N, D)``."""
        values = seen.images if self.layer == IMAGE else seen.layers[self.layer]
        return values.flatten(1)

    def merge(self, other: Self) -> None:
        """Add the features that another metric of this kind kept."""
        for label, parts in other._parts.items():
            self._parts.setdefault(label, []).extend(parts)

    @property
    def reference_(self) -> dict[int, Tensor]:
        """The features that are kept of each class, ``{class: (n_c, D)}``; empty before the fit."""
        if self.counts is None:
            return {}
        groups = self.points.split(self.counts.tolist())
        return {label: group for label, group in enumerate(groups) if len(group)}

    def _add(self, features: Tensor, labels: Tensor) -> None:
        check_features(features)
        check_labels(labels, len(features))
        features = features.detach()
        for label in labels.unique().tolist():
            parts = self._parts.setdefault(label, [])
            parts.append(features[labels == label])
            # Now and then, so that what is not kept is not held to the end.
            if self.references and sum(map(len, parts)) > 2 * self.references:
                self._parts[label] = [self._nearest_hashes(torch.cat(parts))]

    def _nearest_hashes(self, group: Tensor) -> Tensor:
        """The rows with the smallest hashes of their content, however the data were divided."""
        return group[content_hashes(group, self.seed).argsort()[: self.references]]

    def _settled(self) -> dict[int, Tensor]:
        """The features that are kept of each class, taken out of their parts."""
        groups = {}
        for label in sorted(self._parts):
            group = torch.cat(self._parts.pop(label))
            many = self.references is not None and len(group) > self.references
            groups[label] = self._stored(self._nearest_hashes(group) if many else group)
        return groups

    def _keep(self, groups: dict[int, Tensor]) -> None:
        """Make the buffers of the features of each class, which are taken out of ``groups``."""
        check_widths("features", list(groups.values()))
        counts = torch.zeros(max(groups) + 1, dtype=torch.int64)
        for label, group in groups.items():
            counts[label] = len(group)
        self.points = torch.cat([groups.pop(label) for label in sorted(groups)])
        self.counts = counts

    def _stored(self, group: Tensor) -> Tensor:
        """The features of a class as they are kept."""
        return group

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take over the tensors of a fitted metric.

        Raises:
            InputError: when features are missing or impossible.
        """
        super().restore(state)
        check_features(self.points)
        counts = self.counts
        whole = counts.dtype == torch.int64 and counts.ndim == 1 and bool((counts >= 0).all())
        if not whole or int(counts.sum()) != len(self.points):
            message = (
                f"expected class counts of {self.name} that add up to {len(self.points)}, got "
                f"{counts.tolist()}; fit again"
            )
            raise InputError(message)
        return self

    def check_classes(self, classes: int) -> None:
        """Refuse a metric that lacks training points of one of the classes."""
        check_all_classes(self.name, self.reference_, classes)


def rows_by_class(classes: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each class that occurs, with the indices of its rows."""
    for label in classes.unique().tolist():
        yield label, torch.nonzero(classes == label).squeeze(1)


def check_features(features: Tensor) -> None:
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


def check_widths(what: str, tensors: Sequence[Tensor]) -> None:
    widths = sorted({tensor.shape[-1] for tensor in tensors})
    if len(widths) > 1:
        message = f"expected {what} of one width, got {' and '.join(map(str, widths))}; fit again"
        raise InputError(message)


def check_all_classes(what: str, known: Mapping[int, Tensor], classes: int) -> None:
    if sorted(known) != list(range(classes)):
        message = f"expected {what} of {classes} classes, got {sorted(known)}; fit again"
        raise InputError(message)


def check_scored(
    known: Collection[int], fitted: Tensor | None, features: Tensor, classes: Tensor, what: str
) -> None:
    """Refuse what cannot be scored.

    Args:
        known: the classes with training features.
        fitted: what the fit left, ``(..., D)``; None before it.
        features: ``(N, D)``.
        classes: ``(N,)``.
        what: the name of the metric's class.

    Raises:
        NotFittedError: before the fit.
        InputError: when features or classes do not fit.
    """
    if fitted is None:
        message = f"expected a fitted {what}, got one that is not; call fit(features, labels) first"
        raise NotFittedError(message)
    check_features(features)
    check_labels(classes, len(features))
    width = fitted.shape[-1]
    if features.shape[1] != width:
        message = (
            f"expected features of width {width} as in fit, got {features.shape[1]}; "
            "use the same layer"
        )
        raise InputError(message)
    missing: Sequence[int] = sorted(set(classes.tolist()).difference(known))
    if missing:
        message = (
            f"expected classes out of {sorted(known)}, got {missing} too; "
            "fit with training images of every class"
        )
        raise InputError(message)
