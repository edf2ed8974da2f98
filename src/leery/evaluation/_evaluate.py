"""A detector judged against attacks that do not know of it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from leery.attacks import Attack, gaussian_noise
from leery.detector import Detector
from leery.errors import InputError
from leery.evaluation._detection import POSITIVES, detection
from leery.evaluation._pool import Pool

__all__ = ["evaluate"]


def evaluate(
    detector: Detector,
    images: Tensor,
    labels: Tensor,
    attacks: Mapping[str, Attack],
    *,
    noise: float = 0.0,
) -> pd.DataFrame:
    """How well a detector tells the twins of images that it has not seen from the images.

    The attacker knows the classifier and not the detector: the least a detector must stand, not
    the most. Positives are the twins of the images that the classifier gets right; negatives those
    images and, with noise, their noisy twins.

    Args:
        detector: with a combiner.
        images: ``(N, ...)`` that neither fit, combiner nor calibration has seen.
        labels: int ``(N,)``, the true classes.
        attacks: by name; each makes the adversarial twins of images.
        noise: the standard deviation of the noisy twins; 0 for none.

    Returns:
        A row for each attack and choice of positives ("all", "successful", "failed") that has
        any: attack, positives, success (the share of changed labels), the figures of
        :class:`leery.evaluation.Detection`, and, after calibration, found (the share of positives
        that is flagged), false_alarms and false_alarms_noisy.

    Raises:
        NotFittedError: when the detector has no combiner.
        InputError: when images and labels do not fit, or there is no attack.
    """
    if not attacks:
        message = "expected at least one attack, got none; pass some"
        raise InputError(message)
    clean = detector.measure(images)
    noisy = detector.measure(gaussian_noise(images, noise)) if noise else None
    rows = []
    for name, attack in attacks.items():
        twins = detector.measure(attack(detector.model, images, labels))
        pool = Pool.of_twins(clean, twins, noisy, labels.cpu().numpy())
        rows += _judged(detector, pool, name)
    return pd.DataFrame(rows)


def _judged(detector: Detector, pool: Pool, name: str) -> list[dict[str, Any]]:
    scores = detector.judge(pool.table)
    counts = {
        "all": pool.adversarial,
        "successful": pool.successful,
        "failed": pool.adversarial & ~pool.successful,
    }
    rows = []
    for positives in POSITIVES:
        if not counts[positives].any():
            continue
        rows.append(
            {
                "attack": name,
                "positives": positives,
                "success": pool.attack_success,
                **asdict(detection(pool, scores, positives)),
                **_verdicts(detector, pool, scores, counts[positives]),
            }
        )
    return rows


def _verdicts(
    detector: Detector, pool: Pool, scores: np.ndarray, positive: np.ndarray
) -> dict[str, float]:
    """The shares that are flagged; nothing before calibration."""
    if detector.calibration_ is None:
        return {}
    flagged = detector.calibration_.flagged(scores, pool.table.predicted)
    shares = {
        "found": flagged[positive].mean(),
        "false_alarms": flagged[~pool.adversarial & ~pool.noisy].mean(),
    }
    if pool.noisy.any():
        shares["false_alarms_noisy"] = flagged[pool.noisy].mean()
    return {name: float(share) for name, share in shares.items()}
