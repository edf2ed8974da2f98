"""Why an image got its score: each metric against clean images of its class."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from leery.detector._table import MetricTable

__all__ = ["Explanation", "percentiles"]


@dataclass(frozen=True)
class Explanation:
    """What speaks for and against each image, a row an image, a column a metric.

    Attributes:
        table: the metrics, and the predicted classes.
        percentiles: float64 ``(N, M)``, in [0, 100]: the share of clean images of the predicted
            class with a smaller value, equal ones counted half; NaN for a class of which no clean
            image was seen.
        contributions: float64 ``(N, M)``, what each metric adds to the score.
        intercept: what the score would be without any.
        scores: float64 ``(N,)``: the intercept and the contributions; larger is more adversarial.
        p_values: float64 ``(N,)``, as :meth:`leery.Detector.p_value`; None before calibration.
    """

    table: MetricTable
    percentiles: np.ndarray
    contributions: np.ndarray
    intercept: float
    scores: np.ndarray
    p_values: np.ndarray | None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.table)

    def to_pandas(self) -> pd.DataFrame:
        """One row an image and metric: image, predicted, score, p_value, metric, value, ...

        The last two columns are percentile and contribution; p_value is NaN before calibration.
        """
        count, width = self.table.values.shape
        p_values = np.full(count, np.nan) if self.p_values is None else self.p_values
        return pd.DataFrame(
            {
                "image": np.repeat(np.arange(count), width),
                "predicted": np.repeat(self.table.predicted, width),
                "score": np.repeat(self.scores, width),
                "p_value": np.repeat(p_values, width),
                "metric": list(self.table.names) * count,
                "value": self.table.values.ravel(),
                "percentile": self.percentiles.ravel(),
                "contribution": self.contributions.ravel(),
            }
        )


def percentiles(table: MetricTable, clean: MetricTable) -> np.ndarray:
    """Where each value stands among clean images of its predicted class; see Explanation."""
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
