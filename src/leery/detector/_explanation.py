"""Why an image got its score: each metric against clean images of its class."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from leery.detector._table import MetricTable
from leery.detector._verdicts import Verdicts

__all__ = ["Explanation", "percentiles"]


@dataclass(frozen=True)
class Explanation:
    """Explanation of the scores, with one row per image and one column per metric.

    Attributes:
        verdicts: the verdicts on the images.
        percentiles: float64 ``(N, M)``, in [0, 100]: the percentage of clean images of the
            predicted class with a smaller value, ties counted half; NaN for a class without clean
            images.
        intercept: the score where no metric contributes.
        sentinel_percentiles: float64 ``(N,)``, percentiles of the sentinel's scores, among its
            clean calibration images; None without a calibrated sentinel.
    """

    verdicts: Verdicts
    percentiles: np.ndarray
    intercept: float
    sentinel_percentiles: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.verdicts)

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one row per image and metric.

        Columns: image, predicted, score, p_value (NaN before calibration), metric, value,
        percentile, contribution. With a sentinel there is one more row per image, under the metric
        "sentinel"; it adds nothing to the score, because its verdict is separate.
        """
        verdicts, count = self.verdicts, len(self)
        names = list(verdicts.names)
        columns = [verdicts.metrics, self.percentiles, verdicts.contributions]
        if verdicts.sentinel is not None:
            own = self.sentinel_percentiles
            ranks = np.full(count, np.nan) if own is None else own
            added = (verdicts.sentinel, ranks, np.zeros(count))
            names.append("sentinel")
            columns = [np.column_stack(pair) for pair in zip(columns, added, strict=True)]
        width = len(names)
        p_values = np.full(count, np.nan) if verdicts.p_value is None else verdicts.p_value
        return pd.DataFrame(
            {
                "image": np.repeat(np.arange(count), width),
                "predicted": np.repeat(verdicts.predicted, width),
                "score": np.repeat(verdicts.score, width),
                "p_value": np.repeat(p_values, width),
                "metric": names * count,
                "value": columns[0].ravel(),
                "percentile": columns[1].ravel(),
                "contribution": columns[2].ravel(),
            }
        )


def percentiles(table: MetricTable, clean: MetricTable) -> np.ndarray:
    """Percentile of each value among clean images of the predicted class; see Explanation."""
    found = np.full(table.values.shape, np.nan)
    for label in np.unique(table.predicted):
        rows = table.predicted == label
        own = np.sort(clean.values[clean.predicted == label], axis=0)
        for place in range(len(table.names)) if len(own) else ():
            values, held = table.values[rows, place], own[:, place]
            below = np.searchsorted(held, values, side="left")
            upto = np.searchsorted(held, values, side="right")
            found[rows, place] = 100 * (below + upto) / (2 * len(held))
    return found
