"""Logistic regression on the metrics: unconstrained, as in the paper, and monotone."""

import math
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
from leery.combiners._evidence import Evidence, check_reference
from leery.errors import InputError

__all__ = ["LogisticCombiner", "MonotoneLogisticCombiner"]

_USUAL = math.log(10)
"""Evidence in nats up to which a metric does not count (a p-value of 0.1)."""

_UNDONE = ("consistency",)
"""Families whose metrics are smaller on weak attacks than on clean images."""

_ORDER = 0.01
"""Weight of the mean evidence, which ranks inputs that no metric finds suspicious."""


class LogisticCombiner(Combiner):
    """Standardisation and logistic regression; the score is the log odds of being adversarial.

    Args:
        facts: description of each metric, in column order.

    Attributes:
        mean: float64 ``(M,)``, mean of each metric in the fit set.
        scale: float64 ``(M,)``, standard deviation of each metric in the fit set; 1 where it is 0.
        weights: float64 ``(M,)``, coefficients of the standardised metrics.
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
        """Fit on rows known to be adversarial or not; both kinds must occur.

        Args:
            values: float64 ``(N, M)``, finite.
            predicted: int64 ``(N,)``; not used.
            adversarial: bool ``(N,)``.

        Raises:
            InputError: when the values are not finite or one kind of row is missing.
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
        """Contribution of each metric to the log odds; 0 at the metric's mean in the fit set."""
        del predicted
        self._check_values(values)
        # The buffers stay on the CPU; copies go to the device of the values.
        mean, scale, weights = (
            part.to(values.device) for part in (self.mean, self.scale, self.weights)
        )
        return (values - mean) / scale * weights

    def check(self) -> None:
        """Raise if the fitted state does not match the metrics.

        Raises:
            InputError: when it does not match.
        """
        shapes = {tuple(part.shape) for part in (self.mean, self.scale, self.weights)}
        whole = shapes == {(len(self.facts),)} and self.bias.shape == (1,)
        if not whole or not bool((self.scale > 0).all()):
            message = (
                f"expected a mean, a scale above 0 and a weight for each of {len(self.facts)} "
                "metrics, got other tensors; fit again"
            )
            raise InputError(message)


class MonotoneLogisticCombiner(Combiner):
    r"""Logistic regression whose score never falls when a metric becomes more suspicious.

    .. math:: b + \sum_k w_k \max(0, e_k - \log 10) + 0.01\, \bar e, \qquad w_k \ge 0

    where e is the evidence of each metric: minus the log of its p-value among the rows that are not
    adversarial. A metric counts only where it is more suspicious than in 90 % of those rows. The
    mean evidence only ranks rows in which no metric counts. It leaves out the consistency metrics:
    noise and squeezing undo weak attacks, so these metrics are smaller there than on clean images.
    The paper's regression is unconstrained: trained on a strong attack, it scores blank images and
    weak attacks lower than clean images.

    Args:
        facts: description of each metric, in column order.

    Attributes:
        reference: float64 ``(N, M)``, each column sorted, larger is more suspicious.
        weights: float64 ``(M,)``, at least 0.
        bias: float64 ``(1,)``, the log odds of an input that no metric finds suspicious.

    Source:
        The penalised likelihood is that of scikit-learn's ``LogisticRegression`` with C = 1.
    """

    learns_from_attacks = True
    differentiable = True
    least = 3
    """Smallest number of rows that are not adversarial."""

    reference: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(self, facts: Sequence[Facts]) -> None:
        super().__init__(facts)
        for name in ("reference", "weights", "bias"):
            self.register_buffer(name, None)
        self._evidence: list[Evidence] = []

    @property
    def intercept(self) -> float:
        """The log odds where no metric contributes."""
        return float(self.bias)

    def fit(
        self, values: np.ndarray, predicted: np.ndarray, *, adversarial: np.ndarray | None = None
    ) -> Self:
        """Fit on rows known to be adversarial or not; both kinds must occur.

        Args:
            values: float64 ``(N, M)``, finite.
            predicted: int64 ``(N,)``; not used.
            adversarial: bool ``(N,)``.

        Raises:
            InputError: when the values are not finite or one kind of row is missing.
        """
        del predicted
        truth = _check_both(values, adversarial)
        if (~truth).sum() < self.least:
            message = (
                f"expected at least {self.least} rows that are not adversarial, got "
                f"{(~truth).sum()}; add some"
            )
            raise InputError(message)
        rows = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
        self.reference = (rows[~torch.from_numpy(truth)] * self._signs()).sort(0).values
        self._prepare()
        self.weights, self.bias = bounded_regression(
            (self._each(rows) - _USUAL).clamp_min(0).numpy(), truth
        )
        return self

    def contributions(self, values: Tensor, predicted: Tensor) -> Tensor:
        """Contribution of each metric to the log odds, at least 0."""
        del predicted
        self._check_values(values)
        evidence = self._each(values)
        beyond = (evidence - _USUAL).clamp_min(0)
        return beyond * self.weights.to(values.device) + evidence * self._order().to(values.device)

    def check(self) -> None:
        """Raise if the fitted state does not match the metrics or has negative weights.

        Raises:
            InputError: when the state is invalid.
        """
        count = len(self.facts)
        whole = self.weights.shape == (count,) and self.bias.shape == (1,)
        if not whole or self.reference.ndim != 2 or self.reference.shape[1] != count:  # noqa: PLR2004
            message = (
                f"expected weights ({count},), a bias (1,) and a reference (N, {count}), got "
                f"{tuple(self.weights.shape)}, {tuple(self.bias.shape)} and "
                f"{tuple(self.reference.shape)}; fit again"
            )
            raise InputError(message)
        if not bool((self.weights >= 0).all()):
            message = (
                "expected weights of at least 0 in a logistic combiner, got a negative one; fit "
                "the detector again"
            )
            raise InputError(message)
        check_reference(self.reference, self.least)
        self._prepare()

    def _prepare(self) -> None:
        self._evidence = [
            Evidence.of(column.contiguous(), two_sided=fact.direction == "both")
            for column, fact in zip(self.reference.unbind(1), self.facts, strict=True)
        ]

    def _order(self) -> Tensor:
        """Weight of each metric's evidence in the mean-evidence term."""
        counted = [float(fact.family not in _UNDONE) for fact in self.facts]
        share = torch.tensor(counted if any(counted) else [1.0] * len(counted))
        return (_ORDER * share / share.sum()).double()

    def _signs(self) -> Tensor:
        signs = [-1.0 if fact.direction == "smaller" else 1.0 for fact in self.facts]
        return torch.tensor(signs, dtype=torch.float64)

    def _each(self, values: Tensor) -> Tensor:
        """The evidence of each metric, float64 ``(N, M)``."""
        columns = (values * self._signs().to(values.device)).unbind(1)
        return torch.stack(
            [evidence(column) for evidence, column in zip(self._evidence, columns, strict=True)], 1
        )


def bounded_regression(rows: np.ndarray, truth: np.ndarray) -> tuple[Tensor, Tensor]:
    """Non-negative weights and the bias of an L2-regularised logistic regression (C = 1)."""

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        odds = rows @ parameters[:-1] + parameters[-1]
        error = expit(odds) - truth
        value = np.logaddexp(0, odds).sum() - odds[truth].sum()
        gradient = np.append(rows.T @ error + parameters[:-1], error.sum())
        return float(value + np.square(parameters[:-1]).sum() / 2), gradient

    bounds = [(0.0, None)] * rows.shape[1] + [(None, None)]
    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, bounds=bounds).x
    return torch.from_numpy(found[:-1]), torch.from_numpy(found[-1:])


def _check_both(values: np.ndarray, adversarial: np.ndarray | None) -> np.ndarray:
    """Mask of the adversarial rows; raises unless both kinds of rows occur."""
    check_finite(torch.from_numpy(values))
    if adversarial is None or len(np.unique(adversarial)) != 2:  # noqa: PLR2004 - both
        only = "adversarial" if adversarial is not None and adversarial.all() else "non-adversarial"
        message = (
            f"expected adversarial and non-adversarial rows, got only {only} ones; "
            "add the missing kind"
        )
        raise InputError(message)
    return adversarial
