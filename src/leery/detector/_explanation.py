"""Why an image got its score: each metric against clean images of its class."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from leery.detector._table import MetricTable
from leery.detector._verdicts import Verdicts

__all__ = ["Explanation", "percentiles"]


@dataclass(frozen=True)
class Explanation:
    """What speaks for and against each image, a row per image, a column per metric.

    Attributes:
        verdicts: all answers about the images.
        percentiles: float64 ``(N, M)``, in [0, 100]: the share of clean images of the predicted
            class with a smaller value, equal ones counted half; NaN for a class of which no clean
            image was seen.
        intercept: the score without any contribution.
    """

    verdicts: Verdicts
    percentiles: np.ndarray
    intercept: float

    def __len__(self) -> int:
        """The number of images."""
        return len(self.verdicts)

    def to_pandas(self) -> pd.DataFrame:
        """One row per image and metric: image, predicted, score, p_value, metric, value, ...

        The last two columns are percentile and contribution; p_value is NaN before calibration.
        """
        verdicts = self.verdicts
        count, width = verdicts.metrics.shape
        p_values = np.full(count, np.nan) if verdicts.p_value is None else verdicts.p_value
        return pd.DataFrame(
            {
                "image": np.repeat(np.arange(count), width),
                "predicted": np.repeat(verdicts.predicted, width),
                "score": np.repeat(verdicts.score, width),
                "p_value": np.repeat(p_values, width),
                "metric": list(verdicts.names) * count,
                "value": verdicts.metrics.ravel(),
                "percentile": self.percentiles.ravel(),
                "contribution": verdicts.contributions.ravel(),
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
