"""Metrics that can be selected by name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from torch import Tensor

from leery.errors import InputError
from leery.metrics._base import Metric, check_metric
from leery.metrics.agreement import AuxiliaryAgreement
from leery.metrics.boundary import BoundaryDistance
from leery.metrics.closeness import BandwidthRule, ClassKL, KernelDensity, Precision
from leery.metrics.consistency import (
    NoiseConsistency,
    ShiftConsistency,
    Squeezing,
    SqueezingMeasure,
)
from leery.metrics.dispersion import LogitFeatureShift, UnitDispersion
from leery.metrics.distance import Mahalanobis, NearestNeighbours
from leery.metrics.forward_pass import FORWARD, ForwardPass
from leery.metrics.statistics import STATISTICS, InputStatistic
from leery.metrics.uncertainty import UNCERTAINTY, PassUncertainty
from leery.models import loaded_object, user_code
from leery.names import METRICS, PAPER_METRICS, RECOMMENDED_METRICS
from leery.training import MAX_PIXELS

__all__ = [
    "KINDS",
    "References",
    "direction_of",
    "load_metrics",
    "make_metrics",
    "recommended_for",
]


@dataclass(frozen=True)
class References:
    """Storage settings of metrics that compare with the training data.

    Attributes:
        bandwidth: bandwidth of the kernel density, in the units of the features, or "likelihood" or
            "likelihood-per-class".
        references: maximum number of training images kept per class; None for all.
        precision: data type of the stored features, "float32" or "float16".
        seed: random seed of the selection of training images.
    """

    bandwidth: float | BandwidthRule = "likelihood"
    references: int | None = None
    precision: Precision = "float32"
    seed: int = 0


def _kernel_density(kept: References) -> Metric:
    return KernelDensity(
        kept.bandwidth, references=kept.references, precision=kept.precision, seed=kept.seed
    )


def recommended_for(images: Tensor) -> tuple[tuple[str, ...], str | None]:
    """Names of the default metrics for a type of input.

    For images, these are :data:`RECOMMENDED_METRICS`; without the auxiliary network, which would
    have to be large, if a side exceeds 64 pixels. For other inputs, such as tables and tokens, they
    are ``log_margin`` and :data:`PAPER_METRICS`.

    Args:
        images: a batch of the training data.

    Returns:
        The names, and a sentence on the metrics that were left out, or None.
    """
    if images.ndim != 4 or not images.is_floating_point():  # noqa: PLR2004 - images
        return ("log_margin", *PAPER_METRICS), None
    if max(images.shape[2:]) <= MAX_PIXELS:
        return RECOMMENDED_METRICS, None
    left_out = (
        f"The auxiliary network was left out, because images over {MAX_PIXELS} pixels need a "
        "large one; leery.metrics.AuxiliaryAgreement(network) (--metric MODULE:FUNCTION) accepts a "
        "second classifier of the same classes."
    )
    names = tuple(name for name in RECOMMENDED_METRICS if name != AuxiliaryAgreement.name)
    return names, left_out


def _forward(name: str, _kept: References) -> Metric:
    return ForwardPass(name)


def _again(metric: Metric, _kept: References) -> Metric:
    return type(metric)(**metric.options())


def _statistic(name: str, _kept: References) -> Metric:
    return InputStatistic(name)


def _uncertainty(name: str, _kept: References) -> Metric:
    return PassUncertainty(name)


_SQUEEZING = [
    Squeezing(squeezer, size, measure=measure)
    for squeezer, size in (("bits", 1), ("bits", 3), ("median", 2), ("median", 3))
    for measure in get_args(SqueezingMeasure)
]

_MAKERS: Mapping[str, Callable[[References], Metric]] = {
    AuxiliaryAgreement.name: lambda _kept: AuxiliaryAgreement(),
    **{name: partial(_forward, name) for name in FORWARD},
    NoiseConsistency.name: lambda _kept: NoiseConsistency(),
    ShiftConsistency.name: lambda _kept: ShiftConsistency(),
    **{metric.name: partial(_again, metric) for metric in _SQUEEZING},
    "nearest_neighbours": lambda kept: NearestNeighbours(seed=kept.seed),
    "mahalanobis": lambda _kept: Mahalanobis("class"),
    "relative_mahalanobis": lambda _kept: Mahalanobis("relative"),
    BoundaryDistance.name: lambda _kept: BoundaryDistance(),
    **{name: partial(_uncertainty, name) for name in UNCERTAINTY},
    UnitDispersion.name: lambda _kept: UnitDispersion(),
    LogitFeatureShift.name: lambda _kept: LogitFeatureShift(),
    "kernel_density": _kernel_density,
    "kl_divergence": lambda _kept: ClassKL("softmax"),
    "kl_divergence_sum": lambda _kept: ClassKL("sum"),
    **{name: partial(_statistic, name) for name in STATISTICS},
}

KINDS: Mapping[str, Callable[..., Metric]] = {
    kind.__name__: kind
    for kind in (
        AuxiliaryAgreement,
        BoundaryDistance,
        ClassKL,
        ForwardPass,
        InputStatistic,
        KernelDensity,
        LogitFeatureShift,
        Mahalanobis,
        NearestNeighbours,
        NoiseConsistency,
        PassUncertainty,
        ShiftConsistency,
        Squeezing,
        UnitDispersion,
    )
}
"""Classes of the built-in metrics, by the name that a detector file uses."""


def make_metrics(
    asked: Sequence[str | Metric] | str, kept: References | None = None
) -> tuple[Metric, ...]:
    """Make metrics from names; instances are passed through.

    Raises:
        InputError: when there is none, or a name is unknown or repeated.
    """
    entries: Sequence[Any] = (asked,) if isinstance(asked, (str, Metric)) else tuple(asked)
    for entry in entries:
        if isinstance(entry, Metric):
            check_metric(entry)
    names = [entry.name if isinstance(entry, Metric) else entry for entry in entries]
    unknown = [entry for entry in entries if not isinstance(entry, Metric) and entry not in _MAKERS]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "none"
        message = (
            f"expected names of metrics or instances of leery.metrics.Metric, got {got}; the names "
            f"are {', '.join(METRICS)}"
        )
        raise InputError(message)
    if repeated := {name for name in names if names.count(name) > 1}:
        message = (
            f"expected each metric once, got {', '.join(sorted(repeated))} more than once; leave "
            "out the name where an instance takes its place"
        )
        raise InputError(message)
    return tuple(
        entry if isinstance(entry, Metric) else _MAKERS[entry](kept or References())
        for entry in entries
    )


def direction_of(name: str) -> int:
    """-1 if small values of the metric are suspicious, else 1 (also for the direction "both")."""
    (metric,) = make_metrics(name)
    return -1 if metric.direction == "smaller" else 1


def load_metrics(names: Iterable[str] | None) -> list[Metric]:
    """Make metrics of the user's own.

    Args:
        names: names of their classes, or of functions that return one, as "module:name"; None for
            none.

    Raises:
        InputError: when a name does not give a metric without arguments.
        MachineError: when loading a metric fails because of the machine, such as lack of memory.
    """
    found = []
    for name in names or ():
        kind = loaded_object(name, "metric")
        with user_code(f"{name} to give a metric without arguments"):
            made = kind()
        if not isinstance(made, Metric):
            message = (
                f"expected a subclass of leery.metrics.Metric at {name}, got "
                f"{type(made).__name__}; correct the name"
            )
            raise InputError(message)
        found.append(made)
    return found
