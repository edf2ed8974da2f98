"""Combiners fuse the metrics of an input into one score; larger scores are more suspicious.

The logistic one learns from adversarial images, the conformal one from clean images alone. A
combiner knows the name, family and direction of each metric but never sees images, and it sets no
threshold.
"""

from leery.combiners._base import Combiner, Facts
from leery.combiners._conformal import EXPONENT, FAMILY_WEIGHTS, ConformalCombiner
from leery.combiners._logistic import LogisticCombiner, MonotoneLogisticCombiner
from leery.combiners._registry import COMBINERS, CombinerName, make_combiner

__all__ = [
    "COMBINERS",
    "EXPONENT",
    "FAMILY_WEIGHTS",
    "Combiner",
    "CombinerName",
    "ConformalCombiner",
    "Facts",
    "LogisticCombiner",
    "MonotoneLogisticCombiner",
    "make_combiner",
]
