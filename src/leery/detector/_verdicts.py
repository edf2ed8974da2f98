"""Results of a detector for a batch of inputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from leery.detector._table import MetricTable

__all__ = ["Verdict", "Verdicts"]


@dataclass(frozen=True)
class Verdict:
    """Results of a detector for one input.

    Attributes:
        predicted: the predicted class, with dropout off.
        probabilities: float64 ``(classes,)``, softmax of the logits with dropout off.
        score: the combiner's score; larger is more suspicious.
        p_value: p-value under the hypothesis that the input is clean, of the score, or of score
            and sentinel together (:meth:`leery.Detector.p_value`); None before calibration.
        adversarial: True if the input is flagged; None before calibration.
        metrics: metrics by name, each in its own unit.
        contributions: contribution of each metric to the score, by name.
        sentinel: the sentinel's score; None without a sentinel.
        sentinel_flagged: True if the sentinel flags the input; None before calibration and without
            a sentinel.
    """

    predicted: int
    probabilities: np.ndarray
    score: float
    p_value: float | None
    adversarial: bool | None
    metrics: dict[str, float]
    contributions: dict[str, float]
    sentinel: float | None = None
    sentinel_flagged: bool | None = None


@dataclass(frozen=True, repr=False)
class Verdicts:
    """Results of a detector for a batch of inputs, one row per input.

    Attributes:
        names: names of the metrics, in column order.
        predicted: int64 ``(N,)``, the predicted classes, with dropout off.
        probabilities: float64 ``(N, classes)``, softmax of the logits with dropout off.
        score: float64 ``(N,)``, the combiner's scores; larger is more suspicious.
        p_value: float64 ``(N,)``, in (0, 1]: p-value under the hypothesis that the input is clean,
            of the score, or of score and sentinel together (:meth:`leery.Detector.p_value`); None
            before calibration.
        adversarial: bool ``(N,)``, True for flagged inputs; None before calibration.
        metrics: float64 ``(N, M)``, each in its own unit.
        contributions: float64 ``(N, M)``, contribution of each metric to the score.
        sentinel: float64 ``(N,)``, the sentinel's scores; None without a sentinel.
        sentinel_flagged: bool ``(N,)``, True for inputs that the sentinel flags; these are also
            True in ``adversarial``. None before calibration and without a sentinel.
    """

    names: tuple[str, ...]
    predicted: np.ndarray
    probabilities: np.ndarray
    score: np.ndarray
    p_value: np.ndarray | None
    adversarial: np.ndarray | None
    metrics: np.ndarray
    contributions: np.ndarray
    sentinel: np.ndarray | None = None
    sentinel_flagged: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of inputs."""
        return len(self.score)

    def __repr__(self) -> str:
        """How many inputs were judged adversarial, and the table, cut as pandas cuts it."""
        found = "" if self.adversarial is None else f", {int(self.adversarial.sum())} adversarial"
        return f"Verdicts({len(self)} inputs{found})\n{self.to_pandas()}"

    def __getitem__(self, row: int) -> Verdict:
        """Results for the input in one row."""
        return Verdict(
            int(self.predicted[row]),
            self.probabilities[row],
            float(self.score[row]),
            None if self.p_value is None else float(self.p_value[row]),
            None if self.adversarial is None else bool(self.adversarial[row]),
            dict(zip(self.names, self.metrics[row].tolist(), strict=True)),
            dict(zip(self.names, self.contributions[row].tolist(), strict=True)),
            None if self.sentinel is None else float(self.sentinel[row]),
            None if self.sentinel_flagged is None else bool(self.sentinel_flagged[row]),
        )

    def __iter__(self) -> Iterator[Verdict]:
        """Iterate over the results of the inputs, in order."""
        return (self[row] for row in range(len(self)))

    @property
    def table(self) -> MetricTable:
        """The metrics as a table."""
        return MetricTable(self.names, self.metrics, self.predicted)

    @property
    def sentinel_table(self) -> MetricTable:
        """The sentinel's scores as a table of one column, "sentinel"."""
        assert self.sentinel is not None
        return MetricTable(("sentinel",), self.sentinel[:, np.newaxis], self.predicted)

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one row per input: predicted, score, p_value, adversarial, metrics.

        The columns p_value and adversarial are empty before calibration. With a sentinel there are
        also its score, sentinel, and its verdict, sentinel_flagged.
        """
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame

    def to_arrow(self) -> pa.Table:
        """The columns of :meth:`to_pandas` as an Arrow table."""
        columns: dict[str, object] = {
            "predicted": pa.array(self.predicted, pa.int64()),
            "score": pa.array(self.score, pa.float64()),
            "p_value": _column(self.p_value, pa.float64(), len(self)),
            "adversarial": _column(self.adversarial, pa.bool_(), len(self)),
        }
        if self.sentinel is not None:
            columns["sentinel"] = pa.array(self.sentinel, pa.float64())
            columns["sentinel_flagged"] = _column(self.sentinel_flagged, pa.bool_(), len(self))
        metrics = dict(zip(self.names, self.metrics.T, strict=True))
        return pa.table(columns | {name: pa.array(row) for name, row in metrics.items()})

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the results of several batches."""
        if len(parts) == 1:
            return parts[0]
        arrays: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            own = [getattr(part, name) for part in parts]
            together = own[0] is not None and name != "names"
            arrays[name] = np.concatenate(own) if together else own[0]
        return cls(**arrays)


def _column(values: np.ndarray | None, kind: pa.DataType, count: int) -> pa.Array:
    return pa.nulls(count, kind) if values is None else pa.array(values, kind)
