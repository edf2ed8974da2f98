"""Performance measures of a detector."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from sklearn.metrics import average_precision_score

from leery.errors import InputError
from leery.evaluation._pool import Pool
from leery.evaluation._roc import roc_auc_interval, tpr_at_fpr

__all__ = ["POSITIVES", "Detection", "Positives", "detection", "select_positives"]

Positives = Literal["all", "successful", "failed"]

POSITIVES: tuple[Positives, ...] = get_args(Positives)
"""Which adversarial images count as positives: all, the misclassified ones, or the others."""


@dataclass(frozen=True)
class Detection:
    """Measures of how well scores separate adversarial images from clean and noisy ones.

    Attributes:
        auc: the area under the ROC curve, in [0, 1].
        auc_low: lower limit of the 95 % confidence interval of the AUC, clustered by source image.
        auc_high: upper limit of that interval.
        tpr_at_1_fpr: true-positive rate at a false-alarm rate of at most 1 %.
        tpr_at_5_fpr: true-positive rate at a false-alarm rate of at most 5 %.
        average_precision: the area under the precision-recall curve, in [0, 1].
        n_clean: number of clean rows.
        n_noisy: number of noisy rows.
        n_adversarial: number of adversarial rows that count as positives.
    """

    auc: float
    auc_low: float
    auc_high: float
    tpr_at_1_fpr: float
    tpr_at_5_fpr: float
    average_precision: float
    n_clean: int
    n_noisy: int
    n_adversarial: int


def select_positives(pool: Pool, positives: Positives) -> np.ndarray:
    """Mask of the rows to evaluate: all negatives and the adversarial rows that count.

    Returns:
        bool ``(N,)``.

    Raises:
        InputError: when ``positives`` is none of :data:`POSITIVES`.
    """
    if positives not in POSITIVES:
        message = (
            f"expected one of {', '.join(POSITIVES)} as positives, got {positives!r}; choose one"
        )
        raise InputError(message)
    counting = {
        "all": pool.adversarial,
        "successful": pool.successful,
        "failed": pool.adversarial & ~pool.successful,
    }
    rows: np.ndarray = ~pool.adversarial | counting[positives]
    return rows


def detection(pool: Pool, scores: np.ndarray, positives: Positives = "all") -> Detection:
    """Measure how well scores detect the adversarial rows of a pool.

    Args:
        pool: the measured images and their versions.
        scores: float ``(N,)``, one per row; larger is more suspicious.
        positives: which adversarial images count as positives.

    Raises:
        InputError: when no adversarial image counts.
    """
    rows = select_positives(pool, positives)
    truth, judged = pool.adversarial[rows], scores[rows]
    auc = roc_auc_interval(judged, truth, pool.source[rows])
    n_noisy, n_adversarial = int(pool.noisy[rows].sum()), int(truth.sum())
    return Detection(
        auc=auc.estimate,
        auc_low=auc.low,
        auc_high=auc.high,
        tpr_at_1_fpr=tpr_at_fpr(judged, truth, 0.01),
        tpr_at_5_fpr=tpr_at_fpr(judged, truth, 0.05),
        average_precision=float(average_precision_score(truth, judged)),
        n_clean=int(rows.sum()) - n_noisy - n_adversarial,
        n_noisy=n_noisy,
        n_adversarial=n_adversarial,
    )
