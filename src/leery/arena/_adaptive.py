"""What attackers achieve who know a detector of an arena, and what is proved."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leery.arena._workspace import Workspace
from leery.attacks.adaptive import Target, adaptive_attacks, worst_case
from leery.calibration import Calibration
from leery.models import predict

__all__ = ["ADAPTIVE_IMAGES", "STEPS", "certified", "evaded", "has_gradient", "threshold_of"]

ADAPTIVE_IMAGES = 50
"""Maximum number of images that are attacked with knowledge of the detector."""

STEPS = 100
"""Number of steps of the attacks on a detector with gradients."""

QUERIES = 2000
"""Number of steps of the random search on a detector without gradients."""

_WITHOUT_GRADIENT = ("transfer", "squares")
"""The attacks that need no gradient of the score."""


def threshold_of(
    workspace: Workspace,
    scores: Callable[[str], np.ndarray],
    rate: float,
    kinds: tuple[str, ...],
) -> Calibration:
    """The threshold of a detector, from correctly classified images.

    Args:
        workspace: data of the arena.
        scores: function that returns the scores of a set of images by its name.
        rate: promised false-alarm rate.
        kinds: kinds of images within each of which the promise holds.
    """
    names = [f"threshold|{kind}" for kind in kinds]
    parts = [scores(name)[workspace.right(name)] for name in names]
    joined = np.concatenate(parts)
    return Calibration(
        fpr=rate,
        promise="marginal",
        confidence=0.95,
        per_class=False,
        scores=joined,
        predicted=np.zeros(len(joined), dtype=np.int64),
        kinds=kinds,
        kind=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        right_only=True,
    )


def has_gradient(detector: Any) -> bool:  # noqa: ANN401 - of any class
    """Whether a detector has a score with gradients, exact or a surrogate."""
    return hasattr(detector, "differentiable_score")


def evaded(workspace: Workspace, detector: Any, calibration: Calibration) -> np.ndarray:  # noqa: ANN401 - of any class
    """Which images an attacker changes so that they are misclassified and not flagged, bool.

    A detector without gradients is attacked by random squares on its score and by transfer from the
    classifier alone.

    Args:
        workspace: data of the arena.
        detector: the fitted detector.
        calibration: its threshold.
    """
    images, labels = (part[:ADAPTIVE_IMAGES].clone() for part in workspace.split().attacked)
    model = workspace.classifier().model
    (threshold,) = calibration.thresholds(np.zeros(1, dtype=np.int64))

    def exact(tried: Tensor) -> Tensor:
        found = np.asarray(detector.score(tried), dtype=np.float64)
        return torch.from_numpy(found - threshold)

    def judge(tried: Tensor) -> tuple[Tensor, Tensor]:
        return predict(model, tried).cpu(), exact(tried)

    def smooth(tried: Tensor) -> Tensor:
        found: Tensor = detector.differentiable_score(tried) - threshold
        return found

    known = has_gradient(detector)
    target = Target(model, smooth if known else exact, judge)
    steps = STEPS if known else QUERIES
    attacks = adaptive_attacks(
        target, workspace.config.epsilon, classes=10, steps=steps, pool=images
    )
    chosen = {name: own for name, own in attacks.items() if known or name in _WITHOUT_GRADIENT}
    found = worst_case(target, chosen, images, labels, seed=workspace.config.seed).rows.evaded
    return np.asarray(found, dtype=bool)


def certified(workspace: Workspace, detector: Any, calibration: Calibration) -> np.ndarray:  # noqa: ANN401 - of any class
    """For which of these images it is proved that no attacker can, bool; False without a proof."""
    images, labels = (part[:ADAPTIVE_IMAGES].clone() for part in workspace.split().attacked)
    if not hasattr(detector, "certify"):
        return np.zeros(len(images), dtype=bool)
    proved = detector.certify(images, labels, calibration, epsilon=workspace.config.epsilon)
    return np.asarray(proved, dtype=bool)
