"""The detector, which measures inputs, combines the metrics, is calibrated and gives verdicts.

:class:`Detector` is the facade; its fitted state is held in frozen dataclasses. Metrics, combiners
and the observation of the classifier are separate packages.
"""

from leery.detector._detector import Detector
from leery.detector._explanation import Explanation
from leery.detector._file_fit import FileFit, file_fit_of
from leery.detector._fitting import recommended_metrics
from leery.detector._saved import SavedDetector
from leery.detector._storage import describe
from leery.detector._table import MetricTable
from leery.detector._verdicts import Verdict, Verdicts

__all__ = [
    "Detector",
    "Explanation",
    "FileFit",
    "MetricTable",
    "SavedDetector",
    "Verdict",
    "Verdicts",
    "describe",
    "file_fit_of",
    "recommended_metrics",
]
