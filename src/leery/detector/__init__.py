"""The detector: measure inputs, combine the metrics, calibrate, give verdicts; and its file.

:class:`Detector` is the facade; what it learned is held in frozen records. Metrics, combiners and
the run over the images stand in packages of their own.
"""

from leery.detector._calibration import Calibration, Promise
from leery.detector._detector import Detector
from leery.detector._explanation import Explanation
from leery.detector._fitting import recommended_metrics
from leery.detector._parts import FitParts
from leery.detector._storage import describe
from leery.detector._table import MetricTable
from leery.detector._verdicts import Verdict, Verdicts

__all__ = [
    "Calibration",
    "Detector",
    "Explanation",
    "FitParts",
    "MetricTable",
    "Promise",
    "Verdict",
    "Verdicts",
    "describe",
    "recommended_metrics",
]
