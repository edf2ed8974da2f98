"""Thresholds with a guaranteed false-alarm rate, and p-values, from scores of clean images."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from leery._checks import check_share
from leery.errors import InputError, listed

__all__ = ["Calibration", "Promise"]

Promise = Literal["marginal", "pac"]

_ARRAYS = ("scores", "predicted", "kind")
"""Names of the arrays of a calibration."""


@dataclass(frozen=True)
class Calibration:
    """A threshold for scores, and p-values, from the scores of clean images.

    Attributes:
        fpr: promised false-alarm rate, in (0, 1).
        promise: "marginal": the rate is at most ``fpr`` on average over sets of calibration
            images; "pac": for this set, with probability ``confidence``.
        confidence: confidence level of the promise "pac", in (0, 1).
        per_class: True if the promise holds within each predicted class.
        scores: float64 ``(n,)``, scores of the calibration images.
        predicted: int64 ``(n,)``, their predicted classes.
        kinds: names of the kinds of images: "clean" and each harmless change. The promise holds
            within each kind.
        kind: int64 ``(n,)``, the index of each image's kind.
        right_only: True if misclassified images were left out, so that the promise covers only
            correctly classified ones.

    Source:
        Split conformal prediction: Vovk, Gammerman, Shafer (2005); "pac": Vovk (2012),
        "Conditional validity of inductive conformal predictors"; per class: Mondrian, ibid.
    """

    fpr: float
    promise: Promise
    confidence: float
    per_class: bool
    scores: np.ndarray
    predicted: np.ndarray
    kinds: tuple[str, ...] = ("clean",)
    kind: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    right_only: bool = False

    def __post_init__(self) -> None:
        """Raise if a setting is outside its range."""
        if len(self.kinds) == 1 and len(self.kind) != len(self.scores):
            object.__setattr__(self, "kind", np.zeros(len(self.scores), dtype=np.int64))
        if not 0 < self.fpr < 1:
            message = (
                f"expected a false-alarm rate between 0 and 1, got {self.fpr}; 0.01 stands for 1 %"
            )
        elif self.promise not in get_args(Promise):
            message = f'expected promise "marginal" or "pac", got {self.promise!r}; choose one'
        elif not 0 < self.confidence < 1:
            message = f"expected a confidence between 0 and 1, got {self.confidence}; correct it"
        elif len(self.scores) != len(self.predicted) or not np.isfinite(self.scores).all():
            message = (
                "expected a finite score for each calibration image, got others; calibrate again"
            )
        elif (
            len(self.kind) != len(self.scores)
            or not np.isin(self.kind, np.arange(len(self.kinds))).all()
        ):
            message = (
                "expected a known kind for each calibration image, got others; calibrate again"
            )
        else:
            return
        raise InputError(message)

    @property
    def needed(self) -> int:
        """Least number of images per kind, and per class if requested, that allows a threshold."""
        if self.promise == "marginal":
            return math.ceil(1 / self.fpr - 1e-9) - 1
        return math.ceil(math.log(1 - self.confidence) / math.log(1 - self.fpr) - 1e-9)

    def check_count(self, count: int, classes: int = 1, *, halved: bool = False) -> None:
        """Raise if there are too few images for the promise.

        Args:
            count: the number of images.
            classes: the number of classes, used only with ``per_class``.
            halved: True if one half of the images fits the combiner.

        Raises:
            InputError: when there are too few; the message states the number needed.
        """
        if count < self.needed * (classes if self.per_class else 1) * (2 if halved else 1):
            each = f" in each of {classes} predicted classes" if self.per_class else ""
            more = " and as many for the combiner" if halved else ""
            message = f"{self._expected()}{each}{more}, got {count}; add images or raise the rate"
            raise InputError(message)

    def checked(self, classes: int) -> Self:
        """Return self; raise if there are too few images or a class is out of range.

        Args:
            classes: the number of classes of the classifier.

        Raises:
            InputError: when there are too few; the message states the number needed.
        """
        if self.predicted.min(initial=0) < 0 or self.predicted.max(initial=0) >= classes:
            message = f"expected predicted classes below {classes}, got others; calibrate again"
            raise InputError(message)
        for index in range(len(self.kinds)):
            own = self.predicted[self.kind == index]
            if not self.per_class:
                self.check_count(len(own))
                continue
            counts = np.bincount(own, minlength=classes)
            few = np.flatnonzero(counts < self.needed)
            if len(few):
                message = (
                    f"{self._expected()} in each predicted class, got "
                    f"{listed(map(str, counts[few]))} in classes {listed(map(str, few))}; add "
                    "some, raise the rate or leave out per_class"
                )
                raise InputError(message)
        return self

    def _expected(self) -> str:
        confidence = f" with confidence {self.confidence:g}" if self.promise == "pac" else ""
        of = " that the classifier gets right" if self.right_only else ""
        return (
            f"expected at least {self.needed} clean images{of} for a false-alarm rate of "
            f"{self.fpr:g}{confidence}"
        )

    def share(self, part: float) -> Self:
        """The promise of one of two tests that share the false-alarm rate (Bonferroni).

        Args:
            part: the share of the false-alarm rate, in (0, 1).

        Raises:
            InputError: when the share is outside its range.
        """
        check_share(part)
        # With the promise "pac" either of the two may fail.
        return replace(self, fpr=part * self.fpr, confidence=1 - (1 - self.confidence) / 2)

    def flagged(self, scores: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """The verdicts, bool ``(N,)``, True for flagged images.

        Args:
            scores: float64 ``(N,)``.
            predicted: int64 ``(N,)``, the predicted classes.
        """
        verdicts: np.ndarray = scores > self.thresholds(predicted)
        return verdicts

    def thresholds(self, predicted: np.ndarray) -> np.ndarray:
        """The score above which an image of each of these predicted classes is flagged.

        Args:
            predicted: int64 ``(N,)``, predicted classes.

        Returns:
            float64 ``(N,)``; infinite where there are too few calibration images.
        """
        found = np.full(len(predicted), -np.inf)
        for rows, own in self._groups(predicted):
            found[rows] = np.maximum(found[rows], self._threshold(own))
        return found

    def p_values(self, scores: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Fraction of clean images whose score is at least as large, the image itself included.

        With several kinds of calibration images, the largest such fraction of any kind.

        Args:
            scores: float64 ``(N,)``.
            predicted: int64 ``(N,)``, the predicted classes.

        Returns:
            float64 ``(N,)``, in [1 / (n + 1), 1]; small for suspicious images. On average over
            calibration sets, a clean image has a value of at most alpha with probability at most
            alpha.
        """
        found = np.zeros(len(scores))
        for rows, own in self._groups(predicted):
            reached = len(own) - np.searchsorted(own, scores[rows], side="left")
            found[rows] = np.maximum(found[rows], (1 + reached) / (len(own) + 1))
        return found

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file holds of it: arrays by name as tensors, and JSON-serialisable values."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in _ARRAYS}
        named = ("fpr", "promise", "confidence", "per_class", "right_only")
        facts: dict[str, Any] = {name: getattr(self, name) for name in named}
        return arrays, {**facts, "kinds": list(self.kinds)}

    @classmethod
    def of_parts(cls, arrays: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`parts`.

        Raises:
            InputError: when an array is of another type or shape, or a value is invalid.
            LookupError, TypeError: when one is missing, or another is there.
        """
        found: dict[str, Any] = {name: arrays[name].numpy() for name in _ARRAYS}
        kinds = {name: (array.dtype.name, array.ndim) for name, array in found.items()}
        if kinds != {"scores": ("float64", 1), "predicted": ("int64", 1), "kind": ("int64", 1)}:
            message = f"expected arrays of a calibration, got {kinds}; calibrate again"
            raise InputError(message)
        return cls(**{**facts, "kinds": tuple(facts["kinds"])}, **found)

    def _groups(self, predicted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Indices of rows judged together, and the sorted reference scores of one kind for them."""
        own = self._class_or_all(predicted)
        for label in np.unique(own).tolist():
            for ordered in self._ordered.get(label, [np.empty(0)] * len(self.kinds)):
                yield np.flatnonzero(own == label), ordered

    @cached_property
    def _ordered(self) -> dict[int, list[np.ndarray]]:
        """Sorted scores of each kind, for each label that :meth:`_class_or_all` returns."""
        own = self._class_or_all(self.predicted)
        return {
            label: [
                np.sort(self.scores[(own == label) & (self.kind == index)])
                for index in range(len(self.kinds))
            ]
            for label in np.unique(own).tolist()
        }

    def _class_or_all(self, predicted: np.ndarray) -> np.ndarray:
        """The predicted classes if the promise is per class, else 0 for all images."""
        return predicted if self.per_class else np.zeros_like(predicted)

    def _threshold(self, ordered: np.ndarray) -> float:
        """The score above which images are flagged, infinite if there are too few scores."""
        rank = _rank(len(ordered), self.fpr, self.confidence if self.promise == "pac" else None)
        return float(ordered[-rank]) if rank else math.inf


@cache
def _rank(count: int, fpr: float, confidence: float | None) -> int:
    """Rank of the threshold among ``count`` scores, 1 for the largest; 0 if there is none.

    Args:
        count: the number of scores.
        fpr: promised false-alarm rate.
        confidence: confidence level of the promise "pac"; None for "marginal".
    """
    if confidence is None:
        # The tolerance keeps, say, 0.05 * 20 from falling below 1 by rounding.
        return min(math.floor(fpr * (count + 1) + 1e-9), count)
    # The false-alarm rate above the r-th largest of n scores is Beta(r, n + 1 - r) distributed.
    ranks = np.arange(1, count + 1)
    kept = stats.beta.cdf(fpr, ranks, count + 1 - ranks) >= confidence
    return int(kept.sum())
