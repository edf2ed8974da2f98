"""The detector: measure inputs, combine the metrics, calibrate, give a verdict; and its file."""

from leery.detector._combiner import Combiner
from leery.detector._detector import Detector
from leery.detector._registry import (
    CLOSENESS_METRICS,
    DIRECTIONS,
    METRICS,
    PAPER_METRICS,
    UNCERTAINTY_METRICS,
)
from leery.detector._table import MetricTable

__all__ = [
    "CLOSENESS_METRICS",
    "DIRECTIONS",
    "METRICS",
    "PAPER_METRICS",
    "UNCERTAINTY_METRICS",
    "Combiner",
    "Detector",
    "MetricTable",
]
