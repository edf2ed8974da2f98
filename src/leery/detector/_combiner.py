"""The metrics of an image fused into one score."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from leery.errors import InputError

__all__ = ["Combiner"]


@dataclass(frozen=True)
class Combiner:
    """Standardisation and logistic regression: a score is the log odds of being adversarial.

    Attributes:
        mean: float64 ``(M,)``, of each metric in the fit set.
        scale: float64 ``(M,)``, its standard deviation there; 1 where that is 0.
        weights: float64 ``(M,)``, of the standardised metrics.
        intercept: of the log odds.

    Source:
        Tuna, Catak, Eskil (2020), section 5.3.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: float

    @classmethod
    def fit(cls, values: np.ndarray, adversarial: np.ndarray) -> Self:
        """Learn from rows whose truth is known.

        Args:
            values: float64 ``(N, M)``, finite.
            adversarial: bool ``(N,)``; both truths must occur.

        Raises:
            InputError: when the values are not finite or only one truth occurs.
        """
        _check_finite(values)
        truths = np.unique(adversarial)
        if len(truths) != 2:  # noqa: PLR2004 - adversarial and not
            message = (
                "expected adversarial and other rows to learn from, got only "
                f"{'adversarial' if adversarial.all() else 'other'} ones; add the missing kind"
            )
            raise InputError(message)
        scaler = StandardScaler().fit(values)
        regression = LogisticRegression(max_iter=1000).fit(scaler.transform(values), adversarial)
        return cls(
            scaler.mean_, scaler.scale_, regression.coef_[0], float(regression.intercept_[0])
        )

    def score(self, values: np.ndarray) -> np.ndarray:
        """Log odds of being adversarial.

        Args:
            values: float64 ``(N, M)``, finite.

        Returns:
            float64 ``(N,)``; larger is more adversarial.

        Raises:
            InputError: when the values are not finite.
        """
        _check_finite(values)
        # Row by row: a matrix product may add in another order for another number of rows.
        terms = (values - self.mean) / self.scale * self.weights
        scores: np.ndarray = terms.sum(axis=1) + self.intercept
        return scores


def _check_finite(values: np.ndarray) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        message = (
            f"expected finite metrics, got {int(bad.any(axis=1).sum())} rows with NaN or infinity; "
            "leave out the metric that is undefined there"
        )
        raise InputError(message)
