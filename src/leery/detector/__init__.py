"""The detector: measure inputs, combine the metrics, calibrate, give a verdict; and its file."""

from leery.detector._calibration import Calibration, Promise
from leery.detector._combiner import Combiner, ConformalCombiner, LogisticCombiner
from leery.detector._detector import Detector
from leery.detector._explanation import Explanation
from leery.detector._registry import (
    CLOSENESS_METRICS,
    DIRECTIONS,
    METRICS,
    PAPER_METRICS,
    UNCERTAINTY_METRICS,
)
from leery.detector._storage import describe
from leery.detector._table import MetricTable

__all__ = [
    "CLOSENESS_METRICS",
    "DIRECTIONS",
    "METRICS",
    "PAPER_METRICS",
    "UNCERTAINTY_METRICS",
    "Calibration",
    "Combiner",
    "ConformalCombiner",
    "Detector",
    "Explanation",
    "LogisticCombiner",
    "MetricTable",
    "Promise",
    "describe",
]
