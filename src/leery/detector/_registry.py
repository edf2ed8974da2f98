"""The metrics a detector knows by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

from leery.errors import InputError
from leery.metrics import BandwidthRule, ClassKL, KernelDensity, Precision, uncertainty

__all__ = [
    "CLOSENESS",
    "CLOSENESS_METRICS",
    "DIRECTIONS",
    "METRICS",
    "PAPER_METRICS",
    "UNCERTAINTY",
    "UNCERTAINTY_METRICS",
    "Closeness",
    "Reference",
    "check_metrics",
    "make_closeness",
]


class Closeness(Protocol):
    """A metric that is fitted on the features of training images."""

    def fit(self, features: Tensor, labels: Tensor) -> Self:
        """Learn from clean features ``(N, D)`` and labels ``(N,)``."""

    def score(self, features: Tensor, classes: Tensor) -> Tensor:
        """float64 ``(N,)`` for features ``(N, D)`` held against classes ``(N,)``."""

    def to_tensors(self) -> dict[str, Tensor]:
        """The fitted state."""

    def restore(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over a fitted state."""


UNCERTAINTY: Mapping[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        uncertainty.variance,
        uncertainty.predictive_entropy,
        uncertainty.mutual_information,
        uncertainty.confidence,
        uncertainty.aleatoric,
        uncertainty.epistemic,
        uncertainty.scibilic,
    )
}
"""Functions of the pass probabilities, by name."""

UNCERTAINTY_METRICS = (
    "variance",
    "predictive_entropy",
    "mutual_information",
    "confidence",
)
"""The paper's metrics of uncertainty."""

CLOSENESS_METRICS = ("kernel_density", "kl_divergence")
"""The paper's metrics of closeness to the training data."""

PAPER_METRICS = UNCERTAINTY_METRICS + CLOSENESS_METRICS
"""The six metrics of the paper, in the order of its table 5."""


@dataclass(frozen=True)
class Reference:
    """How the training data are kept, for the metrics that compare with them.

    Attributes:
        bandwidth: of the kernel density: a number in the units of the features, "likelihood" or
            "likelihood-per-class".
        references: at most so many training images a class are kept; None for all.
        precision: of what is kept, "float32" or "float16".
        seed: of the draw of the references.
    """

    bandwidth: float | BandwidthRule
    references: int | None
    precision: Precision
    seed: int


CLOSENESS: Mapping[str, Callable[[Reference], Closeness]] = {
    "kernel_density": lambda kept: KernelDensity(
        kept.bandwidth, references=kept.references, precision=kept.precision, seed=kept.seed
    ),
    "kl_divergence": lambda _kept: ClassKL("softmax"),
    "kl_divergence_sum": lambda _kept: ClassKL("sum"),
}
"""Makers of metrics of closeness; not yet fitted.

The two KL divergences differ in how features become probabilities, which the paper leaves open.
"""

METRICS: tuple[str, ...] = (*UNCERTAINTY, *CLOSENESS)
"""Every metric a detector can be asked for."""

DIRECTIONS: Mapping[str, int] = {
    name: -1 if name in ("confidence", "kernel_density") else 1 for name in METRICS
}
"""1 where a larger value speaks for an adversarial image, -1 where a smaller one does."""


def make_closeness(names: Sequence[str], kept: Reference) -> dict[str, Closeness]:
    """The metrics of closeness among the names, not yet fitted."""
    return {name: CLOSENESS[name](kept) for name in names if name in CLOSENESS}


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple, refused when there is none, an unknown or a repeated one.

    Raises:
        InputError: then.
    """
    found = (names,) if isinstance(names, str) else tuple(names)
    unknown = [name for name in found if name not in METRICS]
    if not found or unknown or len(set(found)) < len(found):
        message = (
            f"expected distinct metrics out of {', '.join(METRICS)}, got {list(found)}; "
            "correct the names"
        )
        raise InputError(message)
    return found
