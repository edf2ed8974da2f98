"""The combiner that needs no adversarial image: the smallest of several p-values."""

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from leery.combiners._base import Combiner, Facts, check_finite
from leery.errors import InputError

__all__ = ["ConformalCombiner"]


class ConformalCombiner(Combiner):
    r"""The smallest p-value of an image among reference images that are not adversarial.

    .. math:: s(x) = -\log \min \Bigl( \prod_{u} p_u^{1/U},\ p_{c_1 | U}, \dots, p_{c_C | U} \Bigr)

    Each metric has a one-sided p-value: the share of reference images that are at least as
    suspicious by it; a metric of which both directions are suspicious has twice the smaller of the
    two. The U metrics of uncertainty, which say much the same, count as one by their geometric
    mean. Any other metric is compared with those reference images of which the classifier is about
    as sure: an adversarial image that the classifier is sure of lies farther from the training data
    than clean images that it is sure of, though not farther than doubtful ones.

    Args:
        facts: of each metric, in column order.

    Attributes:
        reference: float64 ``(N, M)``, the metrics of the reference images.

    Notes:
        The smallest of several p-values is not uniform, and dependence between metrics is not
        known; a threshold comes from calibration on separate images. Inside the largest tenth of
        the reference and above it, p-values follow an exponential tail of its mean excess, so that
        images beyond all references still differ.

    Source:
        p-values: Vovk, Gammerman, Shafer (2005); the smallest: Tippett (1931); the condition on
        uncertainty is a Mondrian taxonomy (Vovk et al. 2005, section 4.5). The tail: Pickands
        (1975), with shape 0.
    """

    learns_from_attacks = False
    differentiable = False
    least = 40
    """The smallest number of reference images, and of those in a stratum."""

    reference: Tensor

    def __init__(self, facts: Sequence[Facts]) -> None:
        super().__init__(facts)
        self.register_buffer("reference", None)

    def fit(
        self, values: np.ndarray, predicted: np.ndarray, *, adversarial: np.ndarray | None = None
    ) -> Self:
        """Take the rows as the reference.

        Args:
            values: float64 ``(N, M)``, finite, of images that are not adversarial.
            predicted: int64 ``(N,)``; not used.
            adversarial: None.

        Raises:
            InputError: when rows are adversarial, too few or not finite.
        """
        del predicted
        if adversarial is not None and adversarial.any():
            message = (
                "expected images that are not adversarial for the conformal combiner, got some "
                "that are; leave them out or use the logistic one"
            )
            raise InputError(message)
        self.reference = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
        self.check()
        return self

    def check(self) -> None:
        """Refuse a reference that is too small, of other metrics, or not finite.

        Raises:
            InputError: then.
        """
        shape = tuple(self.reference.shape)
        if len(shape) != 2 or shape[1] != len(self.facts):  # noqa: PLR2004 - images, metrics
            message = f"expected a reference of {len(self.facts)} metrics, got {shape}; fit again"
            raise InputError(message)
        check_finite(self.reference)
        if shape[0] < self.least:
            message = (
                f"expected at least {self.least} images that are not adversarial, got {shape[0]}; "
                "add some"
            )
            raise InputError(message)

    def contributions(self, values: Tensor, predicted: Tensor) -> Tensor:
        """The parts of the score that come from the metrics with the smallest p-value, nats.

        Returns:
            float64 ``(N, M)``, at least 0; the metrics of uncertainty share theirs.
        """
        del predicted
        self._check_values(values)
        surprise = -self._log_p(values.cpu())
        families = self._families()
        terms = torch.stack([surprise[:, columns].mean(1) for columns in families], 1)
        winner = terms.argmax(1)
        found = torch.zeros_like(surprise)
        for index, columns in enumerate(families):
            rows = (winner == index).nonzero()
            found[rows, columns] = surprise[rows, columns] / len(columns)
        return found.to(values.device)

    def _families(self) -> list[list[int]]:
        """The columns of each p-value: those of uncertainty together, the others alone."""
        doubt = self._doubt()
        others = [[place] for place in range(len(self.facts)) if place not in doubt]
        return ([doubt] if doubt else []) + others

    def _doubt(self) -> list[int]:
        """The columns of the metrics of uncertainty."""
        return [place for place, fact in enumerate(self.facts) if fact.family == "uncertainty"]

    def _log_p(self, values: Tensor) -> Tensor:
        signs = values.new_tensor([-1.0 if f.direction == "smaller" else 1.0 for f in self.facts])
        suspicious, reference = values * signs, self.reference * signs
        doubt = self._doubt()
        whole = torch.zeros(len(values)), torch.zeros(len(reference))
        strata = strata_of_doubt(reference[:, doubt], suspicious[:, doubt], self.least)
        found = torch.empty_like(values)
        for place, fact in enumerate(self.facts):
            own, theirs = whole if place in doubt or not doubt else strata
            for stratum in own.unique():
                rows = own == stratum
                held = reference[theirs == stratum, place]
                found[rows, place] = _log_p(suspicious[rows, place], held, fact)
        return found


def strata_of_doubt(
    reference: Tensor, values: Tensor, least: int, most: int = 5
) -> tuple[Tensor, Tensor]:
    """Strata of about equal doubt, int ``(N,)`` for the values and for the reference.

    Doubt is the mean rank by the metrics of uncertainty among the reference.
    """
    ordered = reference.sort(0).values.T.contiguous()

    def doubt(rows: Tensor) -> Tensor:
        return torch.searchsorted(ordered, rows.T.contiguous()).double().mean(0)

    of_reference = doubt(reference)
    count = max(1, min(most, len(reference) // least))
    edges: list[float] = []
    shares = torch.linspace(0, 1, count + 1, dtype=torch.float64)[1:-1]
    for edge in of_reference.quantile(shares).tolist() if len(ordered) else []:
        # Equal doubts stay together, which can leave too few on either side of an edge.
        below = int((of_reference < edge).sum()) - int((of_reference < (edges or [-1])[-1]).sum())
        if below >= least and int((of_reference >= edge).sum()) >= least:
            edges.append(edge)
    bins = of_reference.new_tensor(edges)
    return (
        torch.bucketize(doubt(values), bins, right=True),
        torch.bucketize(of_reference, bins, right=True),
    )


def _log_p(values: Tensor, held: Tensor, fact: Facts) -> Tensor:
    """The log p-value of each value among ``held``, in the metric's direction."""
    found = _log_upper_p(values, held.sort().values)
    if fact.direction != "both":
        return found
    other = _log_upper_p(-values, (-held).sort().values)
    return (torch.minimum(found, other) + math.log(2)).clamp_max(0.0)


def _log_upper_p(values: Tensor, held: Tensor) -> Tensor:
    """The log of the share of ``held`` (sorted) that is as large, with an exponential tail."""
    count = len(held)
    reached = count - torch.searchsorted(held, values.contiguous(), side="left")
    found = ((1 + reached).double() / (count + 1)).log()
    tail = count // 10
    if tail < 2 or held[-1] <= held[-tail - 1]:  # noqa: PLR2004 - a mean excess needs two
        return found
    start = held[-tail - 1]
    excess = (held[-tail:] - start).mean()
    beyond = math.log(tail / (count + 1)) - (values - start) / excess
    return torch.where(values > start, beyond, found)
