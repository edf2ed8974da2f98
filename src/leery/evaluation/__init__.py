"""Evaluation of detectors: image pools, held-out protocols, measures with confidence intervals."""

from leery.evaluation._abstention import Abstention, abstention
from leery.evaluation._adaptive import (
    AdaptiveEvaluation,
    evaluate_adaptive,
    robust_error,
    target_of,
)
from leery.evaluation._certificates import certificates, certified_shares
from leery.evaluation._detection import (
    POSITIVES,
    Detection,
    Positives,
    detection,
    select_positives,
)
from leery.evaluation._evaluate import evaluate
from leery.evaluation._false_alarms import alarm_rows, false_alarms
from leery.evaluation._intervals import (
    Interval,
    mean_difference,
    share_difference,
    share_interval,
)
from leery.evaluation._pool import Pool
from leery.evaluation._protocols import (
    FOLDS,
    PROTOCOLS,
    Protocol,
    cross_fit,
    held_out_scores,
    in_sample_scores,
)
from leery.evaluation._roc import roc_auc_difference, roc_auc_interval, tpr_at_fpr
from leery.evaluation._worst_case import every_attack_found

__all__ = [
    "FOLDS",
    "POSITIVES",
    "PROTOCOLS",
    "Abstention",
    "AdaptiveEvaluation",
    "Detection",
    "Interval",
    "Pool",
    "Positives",
    "Protocol",
    "abstention",
    "alarm_rows",
    "certificates",
    "certified_shares",
    "cross_fit",
    "detection",
    "evaluate",
    "evaluate_adaptive",
    "every_attack_found",
    "false_alarms",
    "held_out_scores",
    "in_sample_scores",
    "mean_difference",
    "robust_error",
    "roc_auc_difference",
    "roc_auc_interval",
    "select_positives",
    "share_difference",
    "share_interval",
    "target_of",
    "tpr_at_fpr",
]
