"""The metrics of an image fused into one score, learnt with adversarial images or without."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from leery.detector._registry import DIRECTIONS, UNCERTAINTY
from leery.errors import InputError

__all__ = ["COMBINERS", "Combiner", "CombinerName", "ConformalCombiner", "LogisticCombiner"]

CombinerName = Literal["logistic", "conformal"]


class Combiner(Protocol):
    """Fuses metrics; larger scores are more adversarial."""

    @property
    def intercept(self) -> float:
        """What the score is where no metric contributes."""

    def contributions(self, values: np.ndarray) -> np.ndarray:
        """float64 ``(N, M)`` for metrics ``(N, M)``: what each adds to the intercept."""

    def score(self, values: np.ndarray) -> np.ndarray:
        """float64 ``(N,)``: the intercept and all contributions."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The fitted state."""


@dataclass(frozen=True)
class LogisticCombiner:
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

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Self:
        """Take over what :meth:`to_arrays` gave.

        Raises:
            InputError: when it is not for those metrics.
        """
        mean, scale, weights = (arrays[part] for part in ("mean", "scale", "weights"))
        intercept = arrays["intercept"]
        shapes = {part.shape for part in (mean, scale, weights)}
        whole = np.concatenate([mean, scale, weights, intercept])
        if shapes != {(len(names),)} or not np.isfinite(whole).all() or not (scale > 0).all():
            message = f"expected a finite mean, scale and weight for each of {len(names)} metrics"
            raise InputError(message)
        return cls(mean, scale, weights, float(intercept[0]))

    def contributions(self, values: np.ndarray) -> np.ndarray:
        """What each metric adds to the log odds.

        Args:
            values: float64 ``(N, M)``, finite.

        Returns:
            float64 ``(N, M)``; 0 at the metric's mean in the fit set.

        Raises:
            InputError: when the values are not finite.
        """
        _check_finite(values)
        found: np.ndarray = (values - self.mean) / self.scale * self.weights
        return found

    def score(self, values: np.ndarray) -> np.ndarray:
        """Log odds of being adversarial.

        Args:
            values: float64 ``(N, M)``, finite.

        Returns:
            float64 ``(N,)``; larger is more adversarial.

        Raises:
            InputError: when the values are not finite.
        """
        # Row by row: a matrix product may add in another order for another number of rows.
        rows = np.ascontiguousarray(self.contributions(values))
        scores: np.ndarray = rows.sum(axis=1) + self.intercept
        return scores

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The fitted state."""
        return {
            "mean": self.mean,
            "scale": self.scale,
            "weights": self.weights,
            "intercept": np.array([self.intercept]),
        }


@dataclass(frozen=True)
class ConformalCombiner:
    r"""The smallest p-value of an image among reference images that are not adversarial.

    .. math:: s(x) = -\log \min \Bigl( \prod_{u} p_u^{1/U},\ p_{c_1 | U}, \dots, p_{c_C | U} \Bigr)

    Each metric has a one-sided p-value: the share of reference images that are at least as
    suspicious by it. The U metrics of uncertainty, which say much the same, count as one by their
    geometric mean. A metric of closeness is held against those reference images of which the
    classifier is about as sure: an adversarial image that the classifier is sure of lies farther
    from the training data than clean images that it is sure of, though not farther than doubtful
    ones. No adversarial image is needed.

    Attributes:
        names: of the metrics, in column order.
        reference: float64 ``(N, M)``, the metrics of the reference images.

    Notes:
        The smallest of several p-values is not uniform, and dependence between metrics is not
        known; a threshold comes from calibration on images of their own. Above the largest tenth of
        the reference a p-value goes on as an exponential tail of the same mean excess, so that
        images beyond all references still differ.

    Source:
        p-values: Vovk, Gammerman, Shafer (2005); the smallest: Tippett (1931); the condition on
        uncertainty is a Mondrian taxonomy (Vovk et al. 2005, section 4.5). The tail: Pickands
        (1975), with shape 0.
    """

    names: tuple[str, ...]
    reference: np.ndarray

    intercept = 0.0

    least = 40
    """The smallest number of reference images, and of those in a stratum."""

    def __post_init__(self) -> None:
        """Refuse a reference that is too small or not finite."""
        if self.reference.ndim != 2 or self.reference.shape[1] != len(self.names):  # noqa: PLR2004
            message = f"expected a reference of {len(self.names)} metrics; fit again"
            raise InputError(message)
        _check_finite(self.reference)
        if len(self.reference) < self.least:
            message = (
                f"expected at least {self.least} images that are not adversarial, got "
                f"{len(self.reference)}; add some"
            )
            raise InputError(message)

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Self:
        """Take over what :meth:`to_arrays` gave.

        Raises:
            InputError: when it is not for those metrics.
        """
        return cls(tuple(names), arrays["reference"])

    def contributions(self, values: np.ndarray) -> np.ndarray:
        """The parts of the score that come from the metrics with the smallest p-value.

        Args:
            values: float64 ``(N, M)``, finite.

        Returns:
            float64 ``(N, M)``, at least 0; the metrics of uncertainty share theirs.

        Raises:
            InputError: when the values are not finite.
        """
        _check_finite(values)
        surprise = -self._log_p(values)
        families = self._families()
        terms = np.stack([surprise[:, columns].mean(axis=1) for columns in families], axis=1)
        winner = terms.argmax(axis=1)
        found = np.zeros_like(surprise)
        for index, columns in enumerate(families):
            cells = np.ix_(np.flatnonzero(winner == index), np.array(columns))
            found[cells] = surprise[cells] / len(columns)
        return found

    def score(self, values: np.ndarray) -> np.ndarray:
        """Minus the logarithm of the smallest p-value.

        Args:
            values: float64 ``(N, M)``, finite.

        Returns:
            float64 ``(N,)``, nats, at least 0; larger is more adversarial.

        Raises:
            InputError: when the values are not finite.
        """
        scores: np.ndarray = self.contributions(values).sum(axis=1)
        return scores

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The fitted state."""
        return {"reference": self.reference}

    def _families(self) -> list[list[int]]:
        """The columns of each p-value: those of uncertainty together, the others alone."""
        doubt = self._doubt()
        others = [[place] for place in range(len(self.names)) if place not in doubt]
        return ([doubt] if doubt else []) + others

    def _doubt(self) -> list[int]:
        """The columns of the metrics of uncertainty."""
        return [place for place, name in enumerate(self.names) if name in UNCERTAINTY]

    def _log_p(self, values: np.ndarray) -> np.ndarray:
        signs = np.array([DIRECTIONS[name] for name in self.names])
        suspicious, reference = values * signs, self.reference * signs
        found: np.ndarray = np.empty(values.shape)
        doubt = self._doubt()
        whole = np.zeros(len(values), dtype=int), np.zeros(len(reference), dtype=int)
        strata = _strata(reference[:, doubt], suspicious[:, doubt], self.least) if doubt else whole
        for place in range(len(self.names)):
            own, theirs = whole if place in doubt else strata
            for stratum in np.unique(own):
                rows = own == stratum
                held = np.sort(reference[theirs == stratum, place])
                found[rows, place] = _log_p_value(suspicious[rows, place], held)
        return found


COMBINERS: Mapping[CombinerName, Callable[[Mapping[str, np.ndarray], Sequence[str]], Combiner]] = {
    "logistic": LogisticCombiner.restore,
    "conformal": ConformalCombiner.restore,
}
"""What brings a combiner back from its arrays, by name."""


def _strata(
    reference: np.ndarray, values: np.ndarray, least: int, most: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Strata of about equal doubt, int ``(N,)`` for the values and for the reference.

    Doubt is the mean rank by the metrics of uncertainty among the reference.
    """
    ordered = np.sort(reference, axis=0)

    def doubt(rows: np.ndarray) -> np.ndarray:
        columns = range(rows.shape[1])
        ranks = [np.searchsorted(ordered[:, place], rows[:, place]) for place in columns]
        found: np.ndarray = np.stack(ranks, axis=1).mean(axis=1)
        return found

    of_reference = doubt(reference)
    count = max(1, min(most, len(reference) // least))
    edges: list[float] = []
    for edge in np.quantile(of_reference, np.linspace(0, 1, count + 1)[1:-1]):
        # Equal doubts stay together, which can leave too few on either side of an edge.
        below = int((of_reference < edge).sum()) - int((of_reference < (edges or [-1])[-1]).sum())
        if below >= least and int((of_reference >= edge).sum()) >= least:
            edges.append(float(edge))
    return np.digitize(doubt(values), edges), np.digitize(of_reference, edges)


def _log_p_value(values: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The log of the share of ``held`` (sorted) that is as large, with an exponential tail."""
    count = len(held)
    reached = count - np.searchsorted(held, values, side="left")
    found: np.ndarray = np.log((1 + reached) / (count + 1))
    tail = count // 10
    if tail < 2 or held[-1] <= held[-tail - 1]:  # noqa: PLR2004 - a mean excess needs two
        return found
    start = held[-tail - 1]
    excess = float((held[-tail:] - start).mean())
    beyond = values > start
    found[beyond] = math.log(tail / (count + 1)) - (values[beyond] - start) / excess
    return found


def _check_finite(values: np.ndarray) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        message = (
            f"expected finite metrics, got {int(bad.any(axis=1).sum())} rows with NaN or infinity; "
            "leave out the metric that is undefined there"
        )
        raise InputError(message)
