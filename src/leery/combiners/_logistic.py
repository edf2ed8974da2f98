"""Logistic regression on the metrics: the paper's, and one that never rewards suspicion."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from leery.combiners._base import Combiner, Facts, check_finite
from leery.errors import InputError

__all__ = ["LogisticCombiner", "MonotoneLogisticCombiner"]

_INNOCENCE = 0.1
"""How much a metric on its unsuspicious side can count, in standard deviations."""


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
        _check_both(values, adversarial)
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


class MonotoneLogisticCombiner(LogisticCombiner):
    """Logistic regression whose score never falls when a metric becomes more suspicious.

    Each metric counts by how far it lies beyond the median of the rows that are not adversarial, on
    its suspicious side, and its weight is at least 0. What lies on the other side speaks for the
    input by at most a tenth of a standard deviation, however far it lies. The paper's regression
    has no such bounds: taught with a strong attack, it takes blank images and weak attacks for
    cleaner than clean ones.

    Args:
        facts: of each metric, in column order.

    Attributes:
        mean: float64 ``(M,)``, the medians.
        scale: float64 ``(M,)``, the standard deviation of each metric; 1 where that is 0.
        weights: float64 ``(M,)``, at least 0.
        bias: float64 ``(1,)``, the log odds of an input whose metrics are all at the medians.

    Source:
        The penalised likelihood is that of scikit-learn's ``LogisticRegression`` with C = 1.
    """

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
        truth = _check_both(values, adversarial)
        self.mean = torch.from_numpy(np.median(values[~truth], axis=0))
        self.scale = torch.from_numpy(StandardScaler().fit(values).scale_)
        rows = self._beyond(torch.from_numpy(values)).numpy()

        def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            odds = rows @ parameters[:-1] + parameters[-1]
            error = expit(odds) - truth
            value = np.logaddexp(0, odds).sum() - odds[truth].sum()
            gradient = np.append(rows.T @ error + parameters[:-1], error.sum())
            return float(value + np.square(parameters[:-1]).sum() / 2), gradient

        bounds = [(0.0, None)] * rows.shape[1] + [(None, None)]
        found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, bounds=bounds).x
        self.weights, self.bias = torch.from_numpy(found[:-1]), torch.from_numpy(found[-1:])
        return self

    def contributions(self, values: Tensor, predicted: Tensor) -> Tensor:
        """What each metric adds to the log odds; 0 at the median of what is not adversarial."""
        del predicted
        self._check_values(values)
        return self._beyond(values) * self.weights.to(values.device)

    def check(self) -> None:
        """Refuse a state of other metrics, or with weights below 0.

        Raises:
            InputError: then.
        """
        super().check()
        if not bool((self.weights >= 0).all()):
            message = "expected weights of at least 0 in a logistic combiner; fit the guard again"
            raise InputError(message)

    def _beyond(self, values: Tensor) -> Tensor:
        """How far each metric lies beyond its median on its suspicious side, in deviations.

        On the other side at least -0.1, so that images stay in an order there too.
        """
        off = (values - self.mean.to(values.device)) / self.scale.to(values.device)
        signs = values.new_tensor([-1.0 if f.direction == "smaller" else 1.0 for f in self.facts])
        both = torch.tensor([f.direction == "both" for f in self.facts], device=values.device)
        beyond = torch.where(both, off.abs(), off * signs)
        return torch.where(beyond > 0, beyond, _INNOCENCE * beyond.tanh())


def _check_both(values: np.ndarray, adversarial: np.ndarray | None) -> np.ndarray:
    """Which rows are adversarial; refused unless some are and some are not."""
    check_finite(torch.from_numpy(values))
    if adversarial is None or len(np.unique(adversarial)) != 2:  # noqa: PLR2004 - both
        only = "adversarial" if adversarial is not None and adversarial.all() else "other"
        message = (
            f"expected adversarial and other rows to learn from, got only {only} ones; "
            "add the missing kind"
        )
        raise InputError(message)
    return adversarial
