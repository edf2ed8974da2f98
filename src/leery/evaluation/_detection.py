"""The figures that a detector is judged by."""

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
"""Which adversarial images count: all, those that change the label, those that do not."""


@dataclass(frozen=True)
class Detection:
    """How well scores tell adversarial images from clean and noisy ones.

    Attributes:
        auc: the area under the ROC curve, in [0, 1].
        auc_low: the lower end of its 95 % interval, clustered by source image.
        auc_high: the upper end.
        tpr_at_1_fpr: the share of positives found with at most 1 % false alarms.
        tpr_at_5_fpr: the same with at most 5 %.
        average_precision: the area under the precision-recall curve, in [0, 1].
        n_clean: clean rows.
        n_noisy: noisy rows.
        n_adversarial: adversarial rows that count.
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
    """The rows to judge by: every negative, and the adversarial rows that count.

    Returns:
        bool ``(N,)``.

    Raises:
        InputError: when ``positives`` is none of :data:`POSITIVES`.
    """
    if positives not in POSITIVES:
        message = f"expected positives out of {', '.join(POSITIVES)}, got {positives!r}; name one"
        raise InputError(message)
    counting = {
        "all": pool.adversarial,
        "successful": pool.successful,
        "failed": pool.adversarial & ~pool.successful,
    }
    rows: np.ndarray = ~pool.adversarial | counting[positives]
    return rows


def detection(pool: Pool, scores: np.ndarray, positives: Positives = "all") -> Detection:
    """Judge the scores of a pool.

    Args:
        pool: the measured versions.
        scores: float ``(N,)``, one a row; larger is more adversarial.
        positives: which adversarial images count.

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
