"""Honest evaluation of a detector: pools of twins, protocols, ROC figures with intervals."""

from leery.evaluation._detection import (
    POSITIVES,
    Detection,
    Positives,
    detection,
    select_positives,
)
from leery.evaluation._pool import Pool
from leery.evaluation._protocols import PROTOCOLS, Protocol, held_out_scores, in_sample_scores
from leery.evaluation._roc import Interval, roc_auc_interval, tpr_at_fpr

__all__ = [
    "POSITIVES",
    "PROTOCOLS",
    "Detection",
    "Interval",
    "Pool",
    "Positives",
    "Protocol",
    "detection",
    "held_out_scores",
    "in_sample_scores",
    "roc_auc_interval",
    "select_positives",
    "tpr_at_fpr",
]
