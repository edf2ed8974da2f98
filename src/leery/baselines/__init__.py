"""Published detectors with which leery's own detector is compared.

Evaluations compare them with a detector on the same images and at the same false-alarm rate. Most
are sets of leery's metrics; departures from a paper are listed in the docstring of the detector or
of its metrics. Detectors that learn from attacks have a true attribute ``learns_from_attacks``.
"""

from leery.baselines._base import MetricBaseline, SupervisedBaseline
from leery.baselines._registry import BASELINES
from leery.baselines._single import SingleMetric
from leery.baselines.deep_knn import DeepNeighbours, DeepNeighboursBaseline
from leery.baselines.feinman import KernelDensityUncertainty
from leery.baselines.later_metrics import LaterMetrics
from leery.baselines.lee import LayerMahalanobis
from leery.baselines.lid import IntrinsicDimensionality, LocalIntrinsicDimensionality
from leery.baselines.metzen import DetectorSubnetwork
from leery.baselines.odds import Odds, StandardisedOdds
from leery.baselines.squeezing import FeatureSqueezing
from leery.baselines.tuna import PaperDetector

__all__ = [
    "BASELINES",
    "DeepNeighbours",
    "DeepNeighboursBaseline",
    "DetectorSubnetwork",
    "FeatureSqueezing",
    "IntrinsicDimensionality",
    "KernelDensityUncertainty",
    "LaterMetrics",
    "LayerMahalanobis",
    "LocalIntrinsicDimensionality",
    "MetricBaseline",
    "Odds",
    "PaperDetector",
    "SingleMetric",
    "StandardisedOdds",
    "SupervisedBaseline",
]
