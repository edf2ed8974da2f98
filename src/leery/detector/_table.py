"""The metrics of a batch of images, as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from leery.errors import InputError

__all__ = ["MetricTable"]


@dataclass(frozen=True)
class MetricTable:
    """Metrics of images, one row per image and one column per metric.

    Attributes:
        names: names of the metrics, in column order.
        values: float64 ``(N, M)``, each in its metric's own unit.
        predicted: int64 ``(N,)``, the class the model gives with dropout off.
    """

    names: tuple[str, ...]
    values: np.ndarray
    predicted: np.ndarray

    def __post_init__(self) -> None:
        """Raise if the shapes do not match."""
        expected = (len(self.predicted), len(self.names))
        if self.values.shape != expected:
            message = f"expected values of shape {expected}, got {self.values.shape}; correct them"
            raise InputError(message)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.predicted)

    def rows(self, chosen: np.ndarray) -> Self:
        """The subset of images with these row indices."""
        return type(self)(self.names, self.values[chosen], self.predicted[chosen])

    def only(self, names: Sequence[str]) -> Self:
        """The table of some of the metrics."""
        return type(self)(tuple(names), self.select(names), self.predicted)

    @classmethod
    def joined(cls, tables: Sequence[Self]) -> Self:
        """Concatenate tables of the same metrics."""
        if len(tables) == 1:
            return tables[0]
        return cls(
            tables[0].names,
            np.concatenate([table.values for table in tables]),
            np.concatenate([table.predicted for table in tables]),
        )

    def column(self, name: str) -> np.ndarray:
        """One metric's values, float64 ``(N,)``.

        Raises:
            InputError: when the table has no such metric.
        """
        return self.select([name])[:, 0]

    def select(self, names: Sequence[str]) -> np.ndarray:
        """The columns of the given metrics, in that order, float64 ``(N, len(names))``.

        Raises:
            InputError: when the table lacks one.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            message = f"expected metrics from {list(self.names)}, got {missing}; correct them"
            raise InputError(message)
        return self.values[:, [self.names.index(name) for name in names]]

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with a column for each metric and ``predicted``."""
        return pd.DataFrame(self.values, columns=list(self.names)).assign(predicted=self.predicted)
