"""Evaluation data: clean images with their noisy and adversarial versions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from leery.detector import MetricTable
from leery.errors import InputError

__all__ = ["Pool"]


@dataclass(frozen=True)
class Pool:
    """Measured clean, noisy and adversarial images, each row tied to its source image.

    Attributes:
        table: the metrics of every row.
        source: int64 ``(N,)``, the index of the image that a row was made from.
        noisy: bool ``(N,)``, True for noisy versions.
        adversarial: bool ``(N,)``, True for adversarial versions.
        successful: bool ``(N,)``, True for adversarial versions that are misclassified.
    """

    table: MetricTable
    source: np.ndarray
    noisy: np.ndarray
    adversarial: np.ndarray
    successful: np.ndarray

    @classmethod
    def of_versions(
        cls,
        clean: MetricTable,
        adversarial: MetricTable,
        noisy: MetricTable | None,
        labels: np.ndarray,
    ) -> Self:
        """Pool all versions of the clean images that are correctly classified.

        Args:
            clean: metrics of the clean images; row i is image i.
            adversarial: row i is the adversarial version of image i.
            noisy: row i is the noisy version of image i, if there are noisy versions.
            labels: int ``(N,)``, the true classes.

        Raises:
            InputError: when the tables differ in length or metrics, or no image is classified
                correctly.

        Source:
            Tuna, Catak, Eskil (2020), section 5.3, after Feinman et al. (2017).
        """
        tables = [clean, *([] if noisy is None else [noisy]), adversarial]
        if any(len(table) != len(labels) or table.names != clean.names for table in tables):
            message = (
                f"expected tables of {len(labels)} rows and equal metrics, got lengths "
                f"{[len(table) for table in tables]}; measure all of them with one detector"
            )
            raise InputError(message)
        right = np.flatnonzero(clean.predicted == labels)
        if len(right) == 0:
            message = "expected a correctly classified image, got none; check model and labels"
            raise InputError(message)
        count = len(right)
        kind = np.repeat(np.arange(len(tables)), count)
        predicted = np.concatenate([table.predicted[right] for table in tables])
        values = np.concatenate([table.values[right] for table in tables])
        positive = kind == len(tables) - 1
        return cls(
            table=MetricTable(clean.names, values, predicted),
            source=np.tile(right, len(tables)),
            noisy=(kind == 1) & ~positive,
            adversarial=positive,
            successful=positive & (predicted != np.tile(labels[right], len(tables))),
        )

    def values(self, names: Sequence[str]) -> np.ndarray:
        """The columns of the given metrics, float64 ``(N, len(names))``."""
        return self.table.select(names)

    @property
    def attack_success(self) -> float:
        """Fraction of adversarial images that are misclassified, in [0, 1]."""
        return float(self.successful.sum() / self.adversarial.sum())
