"""Conformal combiner, fitted on clean images only: a weighted power mean of per-family p-values."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Self

import numpy as np
import torch
from torch import Tensor

from leery.combiners._base import Combiner, Facts, check_finite
from leery.combiners._evidence import Evidence, check_reference
from leery.errors import InputError

__all__ = ["EXPONENT", "FAMILY_WEIGHTS", "ConformalCombiner"]

FAMILY_WEIGHTS: Mapping[str, float] = {"agreement": 0.5, "consistency": 0.25, "shift": 0.25}
"""Relative weight of each family; families not listed get :data:`OTHER_WEIGHT`. Chosen on the
development scenes of benchmarks/scenes.py."""

OTHER_WEIGHT = 0.25

EXPONENT = 0.2
"""The exponent r of the mean, from 0 (excluded) to 1; chosen like the weights."""

_MOST = 1e300
"""Upper limit of the evidence, which keeps sums finite."""

_SHRINK = 10
"""Number of reference images of a class at which its median and the overall one weigh the same."""


class ConformalCombiner(Combiner):
    r"""The weighted power mean of the families' p-values, as evidence in nats.

    .. math:: s(x) = \frac1r \log \sum_f w_f \, p_f(x)^{-r}, \qquad \sum_f w_f = 1, \quad r = 0.2

    A metric's p-value is the fraction of reference images that are at least as suspicious by that
    metric. For metrics that depend on the class, the median of the predicted class is subtracted
    first. The smallest p-value within a family is itself ranked among those of the reference
    images, so that a family of many metrics raises no more alarms than one of few. An exponent
    near 0 gives the weighted sum of the logs, in which one very suspicious family is lost among
    others; 1 gives the harmonic mean, which is nearly determined by the smallest p-value, so that
    several moderately suspicious families go unnoticed. The exponent lies between the two.

    Args:
        facts: description of each metric, in column order.

    Attributes:
        centres: float64 ``(rows, M)``, the medians subtracted for each predicted class, 0 for
            metrics that do not depend on the class; the last row is for all classes above the
            largest predicted class of the reference.
        metric_reference: float64 ``(N, M)``, each column sorted, larger is more suspicious.
        weights: float64 ``(F,)``, one per family in order of first appearance; they sum to 1.
        family_reference: float64 ``(N, F)``, each column sorted, the largest evidence per family.

    Notes:
        Between reference values the evidence is interpolated. Among the largest 5 % it follows an
        exponential tail fitted to their mean excess, so that it is differentiable and still
        separates images beyond the whole reference. The score is not calibrated: the threshold must
        come from other images.

    Source:
        p-values: Vovk, Gammerman, Shafer (2005). Their mean: Vovk and Wang (2020), "Combining
        p-values via averaging", arXiv:1212.4966, with the exponent -r. The tail: Pickands
        (1975), with shape 0.
    """

    learns_from_attacks = False
    differentiable = True
    least = 40
    """Smallest number of reference images."""

    weights: Tensor
    centres: Tensor
    metric_reference: Tensor
    family_reference: Tensor

    def __init__(self, facts: Sequence[Facts]) -> None:
        super().__init__(facts)
        for name in ("weights", "centres", "metric_reference", "family_reference"):
            self.register_buffer(name, None)
        families = tuple(dict.fromkeys(fact.family for fact in facts))
        self._columns = [
            [place for place, fact in enumerate(facts) if fact.family == family]
            for family in families
        ]
        self._families = families
        self._of_metrics: list[Evidence] = []
        self._of_families: list[Evidence] = []

    def fit(
        self, values: np.ndarray, predicted: np.ndarray, *, adversarial: np.ndarray | None = None
    ) -> Self:
        """Store the rows as the reference.

        Args:
            values: float64 ``(N, M)``, finite, of images that are not adversarial.
            predicted: int64 ``(N,)``, their predicted classes.
            adversarial: None, or all False.

        Raises:
            InputError: when rows are adversarial, too few or not finite.
        """
        if adversarial is not None and adversarial.any():
            message = (
                "expected images that are not adversarial for the conformal combiner, got some "
                "that are; leave them out or use the logistic one"
            )
            raise InputError(message)
        rows = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
        self._check_reference(rows)
        classes = torch.from_numpy(predicted)
        shares = [FAMILY_WEIGHTS.get(family, OTHER_WEIGHT) for family in self._families]
        self.weights = torch.tensor(shares, dtype=torch.float64) / sum(shares)
        self.centres = self._medians(rows, classes)
        suspicious = self._suspicious(rows, classes)
        self.metric_reference = suspicious.sort(0).values
        self._of_metrics = self._evidence(self.metric_reference, [f.direction for f in self.facts])
        largest_evidence = self._most_suspicious(self._each(suspicious))
        self.family_reference = largest_evidence.sort(0).values
        self.check()
        return self

    def check(self) -> None:
        """Raise if the reference is too small, does not match the metrics or is not finite.

        Raises:
            InputError: when the reference is invalid.
        """
        self._check_reference(self.metric_reference)
        count = len(self.metric_reference)
        if (
            self.centres.ndim != 2  # noqa: PLR2004 - classes, metrics
            or len(self.centres) == 0
            or self.centres.shape[1] != len(self.facts)
            or self.family_reference.shape != (count, len(self._columns))
            or self.weights.shape != (len(self._columns),)
            or not bool((self.weights > 0).all())
        ):
            message = (
                "expected weights, centres and references of the same metrics, got other shapes or "
                "weights not above 0; fit again"
            )
            raise InputError(message)
        check_finite(self.family_reference)
        for reference in (self.metric_reference, self.family_reference):
            check_reference(reference, self.least)
        self._of_metrics = self._evidence(self.metric_reference, [f.direction for f in self.facts])
        self._of_families = self._evidence(self.family_reference, ["larger"] * len(self._columns))

    def contributions(self, values: Tensor, predicted: Tensor) -> Tensor:
        """The score, split among the families in proportion to what each adds to the sum.

        A family with the p-value p adds ``w (p ** -r - 1)``, nothing at p = 1. Its part is credited
        to its most suspicious metric. Gradients flow through the score, not through its division.

        Returns:
            float64 ``(N, M)``, nats, at least 0.
        """
        self._check_values(values)
        each = self._each(self._suspicious(values, predicted))
        powers = EXPONENT * self._evidence_of_families(each)
        logs = powers + self.weights.log().to(each.device)
        largest = logs.detach().amax(1)
        terms = (logs - largest.unsqueeze(1)).exp()
        score = ((largest + _row_sums(terms).log()) / EXPONENT).clamp_min(0)
        added = (terms * -torch.expm1(-powers)).detach()
        least = torch.finfo(added.dtype).tiny
        parts = added / _row_sums(added).clamp_min(least).unsqueeze(1) * score.unsqueeze(1)
        found = torch.zeros_like(each)
        for index, columns in enumerate(self._columns):
            places = torch.tensor(columns, device=each.device)
            credited = places[each[:, columns].argmax(1)].unsqueeze(1)
            found = found.scatter(1, credited, parts[:, index : index + 1])
        return found

    def _evidence_of_families(self, each: Tensor) -> Tensor:
        """Minus the log of the p-value of each family, float64 ``(N, F)``."""
        largest_evidence = self._most_suspicious(each).unbind(1)
        found = [
            evidence(column) if len(columns) > 1 else column
            for evidence, column, columns in zip(
                self._of_families, largest_evidence, self._columns, strict=True
            )
        ]
        return torch.stack(found, 1).clamp_max(_MOST)

    def _each(self, suspicious: Tensor) -> Tensor:
        """The evidence of each metric, float64 ``(N, M)``."""
        columns = suspicious.unbind(1)
        return torch.stack(
            [evidence(column) for evidence, column in zip(self._of_metrics, columns, strict=True)],
            1,
        )

    def _most_suspicious(self, each: Tensor) -> Tensor:
        """The largest evidence of each family's metrics, float64 ``(N, F)``."""
        return torch.stack([each[:, columns].amax(1) for columns in self._columns], 1)

    def _suspicious(self, values: Tensor, predicted: Tensor) -> Tensor:
        """Values minus the centres of their classes, signed so that larger is suspicious."""
        rows = predicted.clamp_max(len(self.centres) - 1)
        signs = [-1.0 if fact.direction == "smaller" else 1.0 for fact in self.facts]
        return (values - self.centres.to(values.device)[rows]) * values.new_tensor(signs)

    def _medians(self, values: Tensor, classes: Tensor) -> Tensor:
        """Per-class medians, shrunk towards the overall median for classes with few images."""
        overall = values.median(0).values
        rows = []
        for label in range(int(classes.max()) + 1):
            own = values[classes == label]
            share = len(own) / (len(own) + _SHRINK)
            median = own.median(0).values if len(own) else overall
            rows.append(share * median + (1 - share) * overall)
        by_class = torch.tensor([fact.by_class for fact in self.facts])
        return torch.where(by_class, torch.stack([*rows, overall]), 0.0)

    def _evidence(self, reference: Tensor, directions: Sequence[str]) -> list["Evidence"]:
        return [
            Evidence.of(column.contiguous(), two_sided=direction == "both")
            for column, direction in zip(reference.unbind(1), directions, strict=True)
        ]

    def _check_reference(self, reference: Tensor) -> None:
        shape = tuple(reference.shape)
        if len(shape) != 2 or shape[1] != len(self.facts):  # noqa: PLR2004 - images, metrics
            message = f"expected a reference of {len(self.facts)} metrics, got {shape}; fit again"
            raise InputError(message)
        check_finite(reference)
        if shape[0] < self.least:
            message = (
                f"expected at least {self.least} images that are not adversarial, got {shape[0]}; "
                "add some"
            )
            raise InputError(message)


def _row_sums(columns: Tensor) -> Tensor:
    """Sums of rows, one column at a time, so that they do not depend on the number of rows."""
    return reduce(torch.add, columns.unbind(1))
