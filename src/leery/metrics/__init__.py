"""The metrics: how uncertain a classifier is about an input, how close it lies to training data.

A metric is an ``nn.Module`` that states what it needs and maps an observation to a float64 number
per image, in the field's own quantity; it says which direction is suspicious. Fusing metrics and
choosing thresholds does not belong here.
"""

from leery.metrics._base import Direction, FitContext, Metric, metric_refused
from leery.metrics._registry import (
    CLOSENESS_METRICS,
    KINDS,
    METRICS,
    PAPER_METRICS,
    UNCERTAINTY_METRICS,
    References,
    direction_of,
    make_metrics,
)
from leery.metrics.closeness import BandwidthRule, ClassKL, KernelDensity, Pmf, Precision
from leery.metrics.uncertainty import (
    PassUncertainty,
    aleatoric,
    confidence,
    epistemic,
    mutual_information,
    predictive_entropy,
    scibilic,
    variance,
)

__all__ = [
    "CLOSENESS_METRICS",
    "KINDS",
    "METRICS",
    "PAPER_METRICS",
    "UNCERTAINTY_METRICS",
    "BandwidthRule",
    "ClassKL",
    "Direction",
    "FitContext",
    "KernelDensity",
    "Metric",
    "PassUncertainty",
    "Pmf",
    "Precision",
    "References",
    "aleatoric",
    "confidence",
    "direction_of",
    "epistemic",
    "make_metrics",
    "metric_refused",
    "mutual_information",
    "predictive_entropy",
    "scibilic",
    "variance",
]
