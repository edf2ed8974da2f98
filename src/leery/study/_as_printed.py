"""Tasks that evaluate the paper's equations 2 and 9 as printed, for the errata."""

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from leery import Detector
from leery.attacks import BIM, GradientAttack, gaussian_noise
from leery.evaluation import roc_auc_interval
from leery.metrics import KernelDensity
from leery.study._config import Condition
from leery.study._sweeps import predicted_classes
from leery.study._workspace import Workspace, write_json

__all__ = ["as_printed", "bim_as_printed"]

IMAGES = 500
"""Number of correctly classified test images used, in the order of the test set."""


def as_printed(workspace: Workspace, condition: Condition) -> None:
    """Write the success of BIM and the ROC-AUC of kernel density for both readings."""
    detector = workspace.detector()
    rows = workspace.attacked(IMAGES)
    images, labels = (part[rows] for part in workspace.test_set())
    seed = workspace.seed(f"as-printed-{condition.name}")
    adversarial = condition.make()(detector.model, images, labels, seed=seed)
    noisy = gaussian_noise(images, condition.epsilon, seed=workspace.seed("as-printed-noise"))
    versions = [images, noisy, adversarial]
    content: dict[str, Any] = {
        "images": len(rows),
        "kernels": _kernels(detector, versions, workspace.config.bandwidth),
    }
    if condition.attack == "BIM":
        printed = bim_as_printed(detector.model, images, labels, condition.epsilon)
        for name, version in (("changed", adversarial), ("changed_as_printed", printed)):
            content[name] = int((predicted_classes(detector, version) != labels).sum())
    write_json(workspace.reading_file(condition), content)


def bim_as_printed(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    r"""BIM by equation 2 as printed: the clipped step replaces the iterate.

    .. math:: x_{k+1} = \mathrm{clip}_{x, \epsilon}(\alpha\, sign(\nabla_x L(x_k, y)))

    Args:
        model: returns logits ``(N, classes)``.
        images: float ``(N, 1, 28, 28)`` in [0, 1].
        labels: int ``(N,)``, the true classes.
        epsilon: the radius of the ball, in pixel units of [0, 1].

    Returns:
        Tensor like ``images``.
    """
    attack = BIM(epsilon)
    step = GradientAttack(attack.alpha, steps=1, step_size=attack.alpha, bounds=(-1.0, 2.0))
    iterate = images
    for _ in range(attack.steps):
        moved = step(model, iterate, labels) - iterate
        iterate = moved.clamp(images - epsilon, images + epsilon).clamp(0, 1)
    return iterate


def _kernels(detector: Detector, versions: list[Tensor], sigma: float) -> list[dict[str, Any]]:
    """ROC-AUC of the kernel density of clean, noisy and adversarial images for both kernels.

    ``exp(-d^2 / sigma^2)``, as printed, is scikit-learn's kernel with a bandwidth of
    ``sigma / sqrt(2)``.
    """
    fitted = detector.metrics_["kernel_density"]
    assert isinstance(fitted, KernelDensity)
    parts = [detector.features(part) for part in versions]
    count = len(versions[0])
    positive = np.arange(count * len(parts)) >= count * (len(parts) - 1)
    source = np.tile(np.arange(count), len(parts))
    rows = []
    for kernel, bandwidth in (
        ("exp(-d^2 / (2 h^2)), as in scikit-learn", sigma),
        ("exp(-d^2 / sigma^2), as printed", sigma / math.sqrt(2)),
    ):
        density = fitted.with_bandwidth(bandwidth)
        values = np.concatenate(
            [density.score(features, logits.argmax(1)).numpy() for features, logits in parts]
        )
        area = roc_auc_interval(-values, positive, source)
        rows.append(
            {
                "kernel": kernel,
                "bandwidth": bandwidth,
                "auc": area.estimate,
                "auc_low": area.low,
                "auc_high": area.high,
            }
        )
    return rows
