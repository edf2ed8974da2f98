"""The paper's combiner: standardisation and logistic regression."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from leery.combiners._base import Combiner, Facts, check_finite
from leery.errors import InputError

__all__ = ["LogisticCombiner"]


class LogisticCombiner(Combiner):
    """Standardisation and logistic regression: a score is the log odds of being adversarial.

    Args:
        facts: of each metric, in column order.

    Attributes:
        mean: float64 ``(M,)``, of each metric in the fit set.
        scale: float64 ``(M,)``, its standard deviation there; 1 where that is 0.
        weights: float64 ``(M,)``, of the standardised metrics.
        bias: float64 ``(1,)``, the intercept of the log odds.

    Source:
        Tuna, Catak, Eskil (2020), section 5.3.
    """

    learns_from_attacks = True
    differentiable = True

    mean: Tensor
    scale: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(self, facts: Sequence[Facts]) -> None:
        super().__init__(facts)
        for name in ("mean", "scale", "weights", "bias"):
            self.register_buffer(name, None)

    @property
    def intercept(self) -> float:
        """The log odds where no metric contributes."""
        return float(self.bias)

    def fit(
        self, values: np.ndarray, predicted: np.ndarray, *, adversarial: np.ndarray | None = None
    ) -> Self:
        """Learn from rows whose truth is known; both truths must occur.

        Args:
            values: float64 ``(N, M)``, finite.
            predicted: int64 ``(N,)``; not used.
            adversarial: bool ``(N,)``.

        Raises:
            InputError: when the values are not finite or only one truth occurs.
        """
        del predicted
        check_finite(torch.from_numpy(values))
        if adversarial is None or len(np.unique(adversarial)) != 2:  # noqa: PLR2004 - both
            only = "adversarial" if adversarial is not None and adversarial.all() else "other"
            message = (
                f"expected adversarial and other rows to learn from, got only {only} ones; "
                "add the missing kind"
            )
            raise InputError(message)
        scaler = StandardScaler().fit(values)
        regression = LogisticRegression(max_iter=1000).fit(scaler.transform(values), adversarial)
        self.mean, self.scale = torch.from_numpy(scaler.mean_), torch.from_numpy(scaler.scale_)
        self.weights = torch.from_numpy(regression.coef_[0])
        self.bias = torch.from_numpy(regression.intercept_)
        return self

    def contributions(self, values: Tensor, predicted: Tensor) -> Tensor:
        """What each metric adds to the log odds; 0 at the metric's mean in the fit set."""
        del predicted
        self._check_values(values)
        # The buffers follow values to another device.
        mean, scale, weights = (
            part.to(values.device) for part in (self.mean, self.scale, self.weights)
        )
        return (values - mean) / scale * weights

    def check(self) -> None:
        """Refuse a state of other metrics.

        Raises:
            InputError: then.
        """
        shapes = {tuple(part.shape) for part in (self.mean, self.scale, self.weights)}
        whole = shapes == {(len(self.facts),)} and self.bias.shape == (1,)
        if not whole or not bool((self.scale > 0).all()):
            message = f"expected a mean, scale and weight for each of {len(self.facts)} metrics"
            raise InputError(message)
