"""Tasks that vary the strength of the attacks, for figures 2 and 4 to 7."""

import math
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from leery import Detector
from leery.metrics import CLOSENESS_METRICS, ClassKL, KernelDensity
from leery.study._config import (
    ATTACKS,
    STUDIED_METRICS,
    SUCCESS_EPSILONS,
    AttackName,
    Condition,
)
from leery.study._workspace import (
    Version,
    Workspace,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
)

__all__ = [
    "SUCCESS_IMAGES",
    "TRACED",
    "TRACED_CLOSENESS",
    "Trace",
    "first_flipped",
    "load_success",
    "load_trace",
    "predicted_classes",
    "success",
    "success_conditions",
    "trace",
    "trace_shards",
]

SUCCESS_IMAGES = 1000
"""Number of correctly classified test images attacked, in the order of the test set."""

TRACE_IMAGES, TRACE_SHARD = 500, 125

TRACED_CLOSENESS = (*CLOSENESS_METRICS, "kl_divergence_sum")

TRACED: tuple[AttackName, ...] = ("BIM", "FGSM")
"""The attacks of figures 4 to 7."""


def success_conditions() -> tuple[Condition, ...]:
    """Attacks and strengths of figure 2, costly attacks first."""
    names = sorted(get_args(AttackName), key=lambda name: -ATTACKS[name](0.1).steps)
    return tuple(Condition(name, epsilon) for name in names for epsilon in SUCCESS_EPSILONS)


def success(workspace: Workspace, condition: Condition) -> None:
    """Count the correctly classified images whose label an attack changes.

    If the attack was measured at this strength, the measured images are reused.
    """
    rows = workspace.attacked(SUCCESS_IMAGES)
    images, labels = (part[rows] for part in workspace.test_set())
    if condition in workspace.config.conditions:
        predicted = torch.from_numpy(workspace.table(Version(condition=condition)).predicted[rows])
    else:
        seed = workspace.seed(f"success-{condition.name}")
        adversarial = condition.make()(workspace.detector().model, images, labels, seed=seed)
        predicted = predicted_classes(workspace.detector(), adversarial)
    changed = predicted != labels
    write_json(
        workspace.success_file(condition), {"images": len(rows), "changed": int(changed.sum())}
    )


def load_success(workspace: Workspace) -> Iterator[dict[str, Any]]:
    """The points of figure 2: ``attack``, ``epsilon``, ``images``, ``changed``."""
    for condition in success_conditions():
        counts = read_json(workspace.success_file(condition))
        yield {"attack": condition.attack, "epsilon": condition.epsilon, **counts}


def predicted_classes(detector: Detector, images: Tensor) -> Tensor:
    """The classes that the classifier predicts with dropout off, int64 ``(N,)``."""
    return detector.features(images)[1].argmax(1)


def trace_shards(workspace: Workspace) -> range:
    """Indices of an attack's tracing tasks."""
    return range(math.ceil(min(TRACE_IMAGES, len(workspace.labels())) / TRACE_SHARD))


def trace(workspace: Workspace, attack: AttackName, shard: int) -> None:
    """Measure some images at every strength of an attack and write their metrics.

    The file holds ``source`` ``(n,)``, ``label`` ``(n,)``, ``predicted`` ``(E, n)``, ``target``
    ``(n,)`` (the class at the first change of label; -1 if there is none), ``values`` ``(E, n, 7)``
    (the studied metrics), and ``to_source`` and ``to_target`` ``(E, n, 3)`` (closeness to the true
    and to the target class).
    """
    detector = workspace.detector()
    rows = np.array_split(workspace.attacked(TRACE_IMAGES), len(trace_shards(workspace)))[shard]
    images, labels = (part[rows] for part in workspace.test_set())
    strengths = workspace.config.trace_epsilons
    # All strengths in one call: the more images at once, the faster.
    versions = torch.cat(
        [ATTACKS[attack](epsilon)(detector.model, images, labels) for epsilon in strengths]
    )
    table = detector.measure(versions)
    predicted = table.predicted.reshape(len(strengths), -1)
    changed = predicted != labels.numpy()
    first = changed.argmax(0)
    target = np.where(changed.any(0), predicted[first, np.arange(len(rows))], -1)
    against = torch.from_numpy(np.where(target < 0, labels.numpy(), target))
    features = detector.features(versions)[0]
    to_source, to_target = (
        _closeness(detector, features, classes.repeat(len(strengths)))
        for classes in (labels, against)
    )
    write_arrays(
        workspace.trace_file(attack, shard),
        source=rows,
        label=labels.numpy(),
        predicted=predicted,
        target=target,
        values=table.values.reshape(*predicted.shape, -1),
        to_source=to_source.reshape(*predicted.shape, -1),
        to_target=to_target.reshape(*predicted.shape, -1),
    )


def _closeness(detector: Detector, features: Tensor, classes: Tensor) -> np.ndarray:
    """Closeness metrics with respect to given classes, float64 ``(n, 3)``."""
    columns = []
    for name in TRACED_CLOSENESS:
        metric = detector.metrics_[name]
        assert isinstance(metric, (KernelDensity, ClassKL))
        columns.append(metric.score(features, classes))
    return torch.stack(columns, dim=1).numpy()


class Trace:
    """Metrics of images as a function of the strength of an attack.

    Attributes:
        epsilons: float64 ``(E,)``, the strengths.
        source: int64 ``(n,)``, indices of the test images.
        label: int64 ``(n,)``, their true classes.
        target: int64 ``(n,)``, the class at the first change of label; -1 if there is none.
        predicted: int64 ``(E, n)``, the predicted classes.
    """

    def __init__(self, epsilons: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        self.epsilons = epsilons
        self.source, self.label = arrays["source"], arrays["label"]
        self.target, self.predicted = arrays["target"], arrays["predicted"]
        self._values = arrays["values"]
        self._closeness = {"source": arrays["to_source"], "target": arrays["to_target"]}

    @property
    def flips(self) -> np.ndarray:
        """Mask of the images whose label changes within the range, bool ``(n,)``."""
        return self.target >= 0

    @property
    def flip(self) -> np.ndarray:
        """Index of the first strength at which the label changes, int64 ``(n,)``."""
        places: np.ndarray = (self.predicted != self.label).argmax(0)
        return places

    def values(self, metric: str, against: str = "predicted") -> np.ndarray:
        """A metric at every strength, float64 ``(E, n)``.

        Args:
            metric: name of a studied metric.
            against: for closeness metrics, the "predicted", "source" or "target" class.
        """
        if against == "predicted":
            return self._values[:, :, STUDIED_METRICS.index(metric)]
        return self._closeness[against][:, :, TRACED_CLOSENESS.index(metric)]


def load_trace(workspace: Workspace, attack: AttackName) -> Trace:
    """Load the results of the tracing tasks of an attack."""
    parts = [read_arrays(workspace.trace_file(attack, shard)) for shard in trace_shards(workspace)]
    arrays = {
        name: np.concatenate([part[name] for part in parts], axis=min(parts[0][name].ndim - 1, 1))
        for name in parts[0]
    }
    return Trace(np.array(workspace.config.trace_epsilons), arrays)


def first_flipped(traces: dict[AttackName, Trace]) -> int | None:
    """Index of the first image whose label every attack changes within the range, or None.

    This is the image of figures 1 and 4 to 7.
    """
    flipped = np.logical_and.reduce([trace.flips for trace in traces.values()])
    return int(flipped.argmax()) if flipped.any() else None
