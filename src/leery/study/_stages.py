"""Stages of the study, divided into tasks that worker processes run and store as files.

A task is a function of a :class:`Workspace` and further arguments that writes one file, completely
or not at all. It is done if that file exists, so that an interrupted run resumes where it stopped.
The division into tasks does not depend on the number of workers, and every worker computes with one
thread, so that the results are bit-identical for any number of workers.
"""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_curve

from leery import Detector, data
from leery.classifiers import pretrained, save_classifier, train
from leery.evaluation import (
    POSITIVES,
    PROTOCOLS,
    Pool,
    cross_fit,
    detection,
    roc_auc_difference,
    select_positives,
)
from leery.metrics import PAPER_METRICS
from leery.study._config import METRIC_SETS, STUDIED_METRICS, Condition
from leery.study._workspace import MEASURED, SHARD, Version, Workspace, write_arrays, write_json

__all__ = ["FPR_GRID", "evaluate", "fit_detector", "make_classifier", "measure"]

FPR_GRID = np.unique(np.concatenate([np.geomspace(1e-3, 0.1, 41), np.linspace(0, 1, 101)]))
"""False-alarm rates at which ROC curves are stored for the figure, denser at low rates."""

BINS = 60
"""Number of bins of the score histograms."""

WORST = 2
"""Number of misses that are shown per condition."""


def make_classifier(workspace: Workspace) -> None:
    """Write the classifier, shipped or newly trained, to the workspace's folder."""
    config = workspace.config
    if config.retrain:
        classifier = train(config.dataset, seed=config.seed, root=config.data_dir)
    else:
        classifier = pretrained(config.dataset)
    save_classifier(classifier, workspace.weights.parent)


def fit_detector(workspace: Workspace) -> None:
    """Fit the detector on all training images and write its file."""
    config = workspace.config
    images, labels = data.load(config.dataset, "train", config.data_dir)
    model = workspace.classifier().model
    detector = Detector(
        model,
        feature_layer=str(model.last_hidden_layer),
        passes=config.passes,
        seed=config.seed,
        metrics=STUDIED_METRICS,
        bandwidth=config.bandwidth,
    )
    detector.fit(images, labels).save(workspace.detector_file)


def measure(workspace: Workspace, version: Version, start: int) -> None:
    """Make some shards of a version of the test images, measure them and write the table."""
    stop = min(start + MEASURED, len(workspace.labels()))
    shards = [workspace.craft(version, first) for first in range(start, stop, SHARD)]
    table = workspace.detector().measure(torch.cat(shards))
    write_arrays(
        workspace.table_file(version, start), values=table.values, predicted=table.predicted
    )


def evaluate(workspace: Workspace, condition: Condition) -> None:
    """Evaluate every set of metrics on one condition and write all that the report shows."""
    pool = Pool.of_versions(
        clean=workspace.table(Version()),
        adversarial=workspace.table(Version(condition=condition)),
        noisy=workspace.table(Version(sigma=condition.epsilon)),
        labels=workspace.labels(),
    )
    scores = {
        protocol: {
            name: scored(pool, metrics, workspace.config.seed)
            for name, metrics in METRIC_SETS.items()
        }
        for protocol, scored in PROTOCOLS.items()
    }
    rows = [
        row
        for name in METRIC_SETS
        for protocol in PROTOCOLS
        for row in _judged(
            pool,
            scores[protocol][name],
            {**asdict(condition), "metrics": name, "protocol": protocol},
        )
    ]
    held_out = scores["held-out"]
    content = {
        "rows": rows,
        "curves": {name: _curve(pool, found) for name, found in held_out.items()},
        "comparisons": list(_comparisons(pool, held_out)),
        "weights": [
            combiner.weights.tolist()
            for combiner, _ in cross_fit(pool, PAPER_METRICS, workspace.config.seed)
        ],
        "histogram": _histogram(pool, held_out["all"]),
        "worst": _worst(pool, held_out["all"]),
    }
    write_json(workspace.evaluation_file(condition), content)


def _judged(pool: Pool, scores: np.ndarray, facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per choice of positives; without positives it has only the counts."""
    for positives in POSITIVES:
        rows = select_positives(pool, positives)
        if pool.adversarial[rows].any():
            figures = asdict(detection(pool, scores, positives))
        else:
            noisy = int(pool.noisy.sum())
            clean = int(rows.sum()) - noisy
            figures = {"n_clean": clean, "n_noisy": noisy, "n_adversarial": 0}
        yield {**facts, "positives": positives, **figures, "attack_success": pool.attack_success}


def _curve(pool: Pool, scores: np.ndarray) -> list[float]:
    """The true-positive rates at :data:`FPR_GRID`."""
    false_alarms, found, _ = roc_curve(pool.adversarial, scores)
    return [float(rate) for rate in np.interp(FPR_GRID, false_alarms, found)]


def _comparisons(pool: Pool, scores: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """ROC-AUC of each set of metrics minus that of each later one, with intervals."""
    for first, second in combinations(scores, 2):
        found = roc_auc_difference(scores[first], scores[second], pool.adversarial, pool.source)
        yield {
            "first": first,
            "second": second,
            "difference": found.estimate,
            "low": found.low,
            "high": found.high,
        }


def _kinds(pool: Pool) -> dict[str, np.ndarray]:
    """Mask of the rows of each kind of image, bool ``(N,)``."""
    return {
        "clean": ~(pool.noisy | pool.adversarial),
        "noisy": pool.noisy,
        "adversarial, label changed": pool.successful,
        "adversarial, label kept": pool.adversarial & ~pool.successful,
    }


def _histogram(pool: Pool, scores: np.ndarray) -> dict[str, Any]:
    """Number of images of each kind per bin; outliers are counted in the outer bins."""
    low, high = np.quantile(scores, [0.002, 0.998])
    edges = np.linspace(low, high, BINS + 1)
    inside = scores.clip(low, high)
    counts = {
        kind: np.histogram(inside[rows], edges)[0].tolist() for kind, rows in _kinds(pool).items()
    }
    return {"edges": edges.tolist(), "counts": counts}


def _worst(pool: Pool, scores: np.ndarray) -> list[dict[str, Any]]:
    """The misses with the lowest and the false alarms with the highest scores."""
    kinds = _kinds(pool)
    changed = np.flatnonzero(kinds["adversarial, label changed"])
    rows = [("miss", row) for row in changed[np.argsort(scores[changed], kind="stable")][:WORST]]
    for kind in ("clean", "noisy"):
        candidates = np.flatnonzero(kinds[kind])
        rows.append((f"false alarm, {kind}", candidates[np.argmax(scores[candidates])]))
    return [
        {
            "kind": kind,
            "source": int(pool.source[row]),
            "predicted": int(pool.table.predicted[row]),
            "score": float(scores[row]),
            **dict(zip(pool.table.names, pool.table.values[row].tolist(), strict=True)),
        }
        for kind, row in rows
    ]
