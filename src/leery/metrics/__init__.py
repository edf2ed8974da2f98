"""Metrics of an input: uncertainty of the classifier, closeness to training data and others.

A metric is an ``nn.Module`` that declares what it needs, maps an observation to one float64 element
per image, and states which direction is suspicious. Fusing metrics and setting thresholds is done
elsewhere.
"""

from leery.metrics._base import Direction, FitContext, Metric, metric_refused
from leery.metrics._points import TrainingPoints
from leery.metrics._registry import (
    KINDS,
    References,
    direction_of,
    load_metrics,
    make_metrics,
    recommended_for,
)
from leery.metrics.agreement import AuxiliaryAgreement
from leery.metrics.boundary import BoundaryDistance
from leery.metrics.closeness import BandwidthRule, ClassKL, KernelDensity, Pmf, Precision
from leery.metrics.consistency import NoiseConsistency, ShiftConsistency, Squeezing
from leery.metrics.dispersion import LogitFeatureShift, UnitDispersion
from leery.metrics.distance import IMAGE, Mahalanobis, NearestNeighbours
from leery.metrics.forward_pass import ForwardPass, energy, log_margin, margin, max_softmax
from leery.metrics.statistics import InputStatistic, median_residual, residual_kurtosis
from leery.metrics.uncertainty import (
    PassUncertainty,
    aleatoric,
    bhattacharyya,
    confidence,
    epistemic,
    mutual_information,
    predictive_entropy,
    scibilic,
    variance,
)
from leery.names import (
    CLOSENESS_METRICS,
    METRICS,
    PAPER_METRICS,
    RECOMMENDED_METRICS,
    UNCERTAINTY_METRICS,
)

__all__ = [
    "CLOSENESS_METRICS",
    "IMAGE",
    "KINDS",
    "METRICS",
    "PAPER_METRICS",
    "RECOMMENDED_METRICS",
    "UNCERTAINTY_METRICS",
    "AuxiliaryAgreement",
    "BandwidthRule",
    "BoundaryDistance",
    "ClassKL",
    "Direction",
    "FitContext",
    "ForwardPass",
    "InputStatistic",
    "KernelDensity",
    "LogitFeatureShift",
    "Mahalanobis",
    "Metric",
    "NearestNeighbours",
    "NoiseConsistency",
    "PassUncertainty",
    "Pmf",
    "Precision",
    "References",
    "ShiftConsistency",
    "Squeezing",
    "TrainingPoints",
    "UnitDispersion",
    "aleatoric",
    "bhattacharyya",
    "confidence",
    "direction_of",
    "energy",
    "epistemic",
    "load_metrics",
    "log_margin",
    "make_metrics",
    "margin",
    "max_softmax",
    "median_residual",
    "metric_refused",
    "mutual_information",
    "predictive_entropy",
    "recommended_for",
    "residual_kurtosis",
    "scibilic",
    "variance",
]
