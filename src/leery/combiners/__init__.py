"""Combiners fuse the metrics of an input into one score; larger scores are more adversarial.

The logistic one learns from adversarial images, the conformal one from clean images alone. A
combiner knows each metric's name, family and direction and nothing of images; thresholds are not
chosen here.
"""

from leery.combiners._base import Combiner, Facts
from leery.combiners._conformal import FAMILY_WEIGHTS, ConformalCombiner
from leery.combiners._logistic import LogisticCombiner, MonotoneLogisticCombiner
from leery.combiners._registry import COMBINERS, CombinerName, make_combiner

__all__ = [
    "COMBINERS",
    "FAMILY_WEIGHTS",
    "Combiner",
    "CombinerName",
    "ConformalCombiner",
    "Facts",
    "LogisticCombiner",
    "MonotoneLogisticCombiner",
    "make_combiner",
]
