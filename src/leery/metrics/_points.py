"""Storage of training features per class, for metrics that compare with them."""

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
"""Layer name that stands for the pixels."""


class TrainingPoints(Metric):
    """Base class of metrics that store features of training images per class.

    Args:
        references: maximum number of training points kept per class; None for all.
        seed: seed of the content hash by which these points are selected.
        layer: layer whose flattened output is the features; :data:`IMAGE` for the pixels.

    Attributes:
        points: float ``(n, D)``, the stored features, class by class.
        counts: int64 ``(classes,)``, number of stored points per class.
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
        """Store the features of a part of the training data."""
        self._add(self.features(seen), labels)

    def features(self, seen: Observation) -> Tensor:
        """The features of each image, float ``(N, D)``."""
        values = seen.images if self.layer == IMAGE else seen.layers[self.layer]
        return values.flatten(1)

    def merge(self, other: Self) -> None:
        """Add the features that another metric of this class stored."""
        for label, parts in other._parts.items():
            self._parts.setdefault(label, []).extend(parts)
            self._limit(label)

    def learned(self) -> dict[str, Tensor]:
        """The stored features, and how many there are of each class."""
        groups = {label: torch.cat(parts) for label, parts in self._parts.items()}
        return {
            "features": torch.cat(list(groups.values())),
            "labels": torch.tensor(list(groups)),
            "counts": torch.tensor(list(map(len, groups.values()))),
        }

    def load_learned(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`learned` returned in another process."""
        groups = state["features"].split(state["counts"].tolist())
        self._parts = {
            label: [group] for label, group in zip(state["labels"].tolist(), groups, strict=True)
        }

    @property
    def reference_(self) -> dict[int, Tensor]:
        """The stored features of each class, ``{class: (n_c, D)}``; empty before the fit."""
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
            self._limit(label)

    def _limit(self, label: int) -> None:
        """Select features of a class if there are many, which limits the memory of the fit."""
        parts = self._parts[label]
        if self.references and sum(map(len, parts)) > 2 * self.references:
            self._parts[label] = [self._nearest_hashes(torch.cat(parts))]

    def _nearest_hashes(self, group: Tensor) -> Tensor:
        """The rows with the smallest content hashes, independent of the division into parts."""
        return group[content_hashes(group, self.seed).argsort()[: self.references]]

    def _settled(self) -> dict[int, Tensor]:
        """Select the stored features of each class and empty the parts."""
        groups = {}
        for label in sorted(self._parts):
            group = torch.cat(self._parts.pop(label))
            many = self.references is not None and len(group) > self.references
            groups[label] = self._stored(self._nearest_hashes(group) if many else group)
        return groups

    def _keep(self, groups: dict[int, Tensor]) -> None:
        """Fill the buffers with the features of each class; this empties ``groups``."""
        check_widths("features", list(groups.values()))
        counts = torch.zeros(max(groups) + 1, dtype=torch.int64)
        for label, group in groups.items():
            counts[label] = len(group)
        self.points = torch.cat([groups.pop(label) for label in sorted(groups)])
        self.counts = counts

    def _stored(self, group: Tensor) -> Tensor:
        """Convert the features of a class to their stored form."""
        return group

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Load the state of a fitted metric.

        Raises:
            InputError: when features are missing or invalid.
        """
        super().restore(state)
        check_features(self.points)
        counts = self.counts
        whole = counts.dtype == torch.int64 and counts.ndim == 1 and bool((counts >= 0).all())
        if not whole or int(counts.sum()) != len(self.points):
            message = (
                f"expected class counts of {self.name} that sum to {len(self.points)}, got "
                f"{counts.tolist()}; fit again"
            )
            raise InputError(message)
        return self

    def check_classes(self, classes: int) -> None:
        """Raise if a class has no training points."""
        check_all_classes(self.name, self.reference_, classes)


def rows_by_class(classes: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Iterate over the classes that occur, with the indices of their rows."""
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
    """Raise unless features can be scored.

    Args:
        known: classes with training features.
        fitted: fitted tensor ``(..., D)``; None before the fit.
        features: ``(N, D)``.
        classes: ``(N,)``.
        what: class name of the metric.

    Raises:
        NotFittedError: before the fit.
        InputError: when features or classes do not fit.
    """
    if fitted is None:
        message = f"expected a fitted {what}, got an unfitted one; call fit(features, labels) first"
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
            f"expected classes from {sorted(known)}, got {missing} too; "
            "fit with training images of every class"
        )
        raise InputError(message)
