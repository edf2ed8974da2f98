"""Base class of combiners."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from leery.errors import InputError, NotFittedError
from leery.metrics import Direction, Metric

__all__ = ["Combiner", "Facts", "check_finite"]


@dataclass(frozen=True)
class Facts:
    """Description of a metric for a combiner.

    Attributes:
        name: name of the metric.
        family: family of the metric; metrics of one family are largely redundant.
        direction: which side is suspicious: larger, smaller or both.
        by_class: True if the distribution on clean images depends on the predicted class.
    """

    name: str
    family: str
    direction: Direction
    by_class: bool = False

    @classmethod
    def of(cls, metric: Metric) -> Self:
        """Description of the given metric."""
        return cls(metric.name, metric.family, metric.direction, metric.by_class)


class Combiner(nn.Module):
    """Base class that fuses metrics into one score; larger scores are more suspicious.

    Fitted state is held in buffers, None before the fit. The score is the intercept plus the sum
    of the contributions.

    Args:
        facts: description of each metric, in column order.

    Attributes:
        learns_from_attacks: True if :meth:`fit` needs to know which rows are adversarial.
        differentiable: True if gradients of the score reach the metrics.
        intercept: the score where no metric contributes.
    """

    learns_from_attacks: ClassVar[bool]
    differentiable: ClassVar[bool]
    least: ClassVar[int] = 1
    """Smallest number of rows that :meth:`fit` accepts."""

    def __init__(self, facts: Sequence[Facts]) -> None:
        super().__init__()
        self.facts = tuple(facts)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics, in column order."""
        return tuple(fact.name for fact in self.facts)

    @property
    def intercept(self) -> float:
        """The score where no metric contributes."""
        return 0.0

    def fit(
        self, values: np.ndarray, predicted: np.ndarray, *, adversarial: np.ndarray | None = None
    ) -> Self:
        """Fit on the metrics of images.

        Args:
            values: float64 ``(N, M)``, finite.
            predicted: int64 ``(N,)``, the predicted classes.
            adversarial: bool ``(N,)``; None if no row is adversarial.

        Raises:
            InputError: when the combiner cannot be fitted on these rows.
        """
        raise NotImplementedError

    def contributions(self, values: Tensor, predicted: Tensor) -> Tensor:
        """Contribution of each metric to the score.

        Args:
            values: float64 ``(N, M)``, finite.
            predicted: int64 ``(N,)``, the predicted classes.

        Returns:
            float64 ``(N, M)``.

        Raises:
            NotFittedError: before :meth:`fit`.
            InputError: when the values are not finite.
        """
        raise NotImplementedError

    def forward(self, values: Tensor, predicted: Tensor) -> Tensor:
        """The score of each row, float64 ``(N,)``; arguments as in :meth:`contributions`."""
        return self.total(self.contributions(values, predicted))

    def total(self, contributions: Tensor) -> Tensor:
        """The score of rows whose contributions are known, float64 ``(N,)``."""
        columns = contributions.unbind(1)
        # Added one column at a time, so that a row's sum does not depend on the number of rows.
        total = columns[0]
        for column in columns[1:]:
            total = total + column
        return total + self.intercept

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Load the ``state_dict()`` of a fitted combiner.

        Raises:
            InputError: when the tensors do not match these metrics.
        """
        names = [name for name, _ in self._fitted()]
        if sorted(state) != sorted(names):
            message = f"expected tensors {', '.join(names)}, got {', '.join(state)}; fit again"
            raise InputError(message)
        for name, tensor in state.items():
            if tensor.dtype != torch.float64 or not bool(tensor.isfinite().all()):
                message = (
                    f"expected {name} as float64 without NaN or infinity, got other numbers or "
                    f"{tensor.dtype}; fit again"
                )
                raise InputError(message)
            self._buffers[name] = tensor
        self.check()
        return self

    def check(self) -> None:
        """Raise if the fitted state does not match these metrics.

        Raises:
            InputError: when it does not match.
        """

    def _fitted(self) -> list[tuple[str, Tensor | None]]:
        return list(self._buffers.items())

    def _check_values(self, values: Tensor) -> None:
        """Raise before the fit, on a wrong number of columns, or on NaN or infinity."""
        if any(buffer is None for _, buffer in self._fitted()):
            message = (
                f"expected a fitted {type(self).__name__}, got an unfitted one; call fit first"
            )
            raise NotFittedError(message)
        if values.ndim != 2 or values.shape[1] != len(self.facts):  # noqa: PLR2004
            message = (
                f"expected values (N, {len(self.facts)}), got shape {tuple(values.shape)}; pass "
                "the metrics that it was fitted on"
            )
            raise InputError(message)
        check_finite(values)


def check_finite(values: Tensor) -> None:
    """Raise if a row contains NaN or infinity.

    Raises:
        InputError: when a row contains NaN or infinity.
    """
    bad = ~values.isfinite()
    if bool(bad.any()):
        message = (
            f"expected finite metrics, got {int(bad.any(1).sum())} rows with NaN or infinity; "
            "leave out the metric that is undefined there"
        )
        raise InputError(message)
