"""Baselines by name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from leery.baselines._single import SingleMetric
from leery.baselines.deep_knn import DeepNeighboursBaseline
from leery.baselines.feinman import KernelDensityUncertainty
from leery.baselines.later_metrics import LaterMetrics
from leery.baselines.lee import LayerMahalanobis
from leery.baselines.lid import LocalIntrinsicDimensionality
from leery.baselines.metzen import DetectorSubnetwork
from leery.baselines.odds import Odds
from leery.baselines.squeezing import FeatureSqueezing
from leery.baselines.tuna import PaperDetector
from leery.names import BASELINES as _NAMES
from leery.names import IMAGE_BASELINES, SUPERVISED_BASELINES

__all__ = ["BASELINES"]

_OTHERS: Mapping[str, Callable[..., Any]] = {
    "feature_squeezing": FeatureSqueezing,
    "odds": Odds,
    "deep_knn": DeepNeighboursBaseline,
    "kernel_density_uncertainty": KernelDensityUncertainty,
    "lid": LocalIntrinsicDimensionality,
    "layer_mahalanobis": LayerMahalanobis,
    "detector_subnetwork": DetectorSubnetwork,
    "later_metrics": LaterMetrics,
    "paper_metrics": PaperDetector,
}

BASELINES: Mapping[str, Callable[..., Any]] = {
    name: _OTHERS.get(name) or partial(SingleMetric, metric=name)
    for name in (*_NAMES, *IMAGE_BASELINES, *SUPERVISED_BASELINES)
}
"""Published detectors by name; each takes the classifier and keyword settings."""
