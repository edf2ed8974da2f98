"""The metrics that a detector knows by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from leery.errors import InputError
from leery.metrics._base import Metric, check_metric
from leery.metrics.closeness import BandwidthRule, ClassKL, KernelDensity, Precision
from leery.metrics.uncertainty import UNCERTAINTY, PassUncertainty

__all__ = [
    "CLOSENESS_METRICS",
    "KINDS",
    "METRICS",
    "PAPER_METRICS",
    "UNCERTAINTY_METRICS",
    "References",
    "direction_of",
    "make_metrics",
]

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
class References:
    """How the training data are kept, for metrics that compare with them.

    Attributes:
        bandwidth: of the kernel density: a number in the units of the features, "likelihood" or
            "likelihood-per-class".
        references: maximum number of training images kept per class; None for all.
        precision: of what is kept, "float32" or "float16".
        seed: of the choice of what is kept.
    """

    bandwidth: float | BandwidthRule = "likelihood"
    references: int | None = None
    precision: Precision = "float32"
    seed: int = 0


def _kernel_density(kept: References) -> Metric:
    return KernelDensity(
        kept.bandwidth, references=kept.references, precision=kept.precision, seed=kept.seed
    )


def _uncertainty(name: str, _kept: References) -> Metric:
    return PassUncertainty(name)


_MAKERS: Mapping[str, Callable[[References], Metric]] = {
    **{name: partial(_uncertainty, name) for name in UNCERTAINTY},
    "kernel_density": _kernel_density,
    "kl_divergence": lambda _kept: ClassKL("softmax"),
    "kl_divergence_sum": lambda _kept: ClassKL("sum"),
}

METRICS: tuple[str, ...] = tuple(_MAKERS)
"""The names that ``Detector(metrics=[...])`` knows.

The two KL divergences differ in how features become probabilities, which the paper leaves open.
"""

KINDS: Mapping[str, Callable[..., Metric]] = {
    kind.__name__: kind for kind in (PassUncertainty, KernelDensity, ClassKL)
}
"""The classes of leery's own metrics, which a detector file may name."""


def make_metrics(
    asked: Sequence[str | Metric] | str, kept: References | None = None
) -> tuple[Metric, ...]:
    """The metrics of those names; instances as they are.

    Raises:
        InputError: when there is none, or a name is unknown or repeated.
    """
    entries: Sequence[Any] = (asked,) if isinstance(asked, (str, Metric)) else tuple(asked)
    for entry in entries:
        if isinstance(entry, Metric):
            check_metric(entry)
    names = [entry.name if isinstance(entry, Metric) else entry for entry in entries]
    unknown = [entry for entry in entries if not isinstance(entry, Metric) and entry not in _MAKERS]
    if not names or unknown or len(set(names)) < len(names):
        message = (
            f"expected distinct metrics out of {', '.join(METRICS)}, or instances of "
            f"leery.metrics.Metric with other names, got {names}; correct them"
        )
        raise InputError(message)
    return tuple(
        entry if isinstance(entry, Metric) else _MAKERS[entry](kept or References())
        for entry in entries
    )


def direction_of(name: str) -> int:
    """1 where large values of the metric of that name are suspicious, -1 where small ones are."""
    (metric,) = make_metrics(name)
    return -1 if metric.direction == "smaller" else 1
