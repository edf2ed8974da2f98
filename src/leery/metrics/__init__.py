"""The metrics: how uncertain a classifier is about an input, how close it lies to training data.

Uncertainty metrics are pure functions of the class probabilities of Monte-Carlo dropout passes;
closeness metrics are fitted on the last hidden layer's output for training images. Each returns
the field's own quantity, in float64; the detector knows which direction is suspicious.
"""

from leery.metrics.closeness import BandwidthRule, ClassKL, KernelDensity, Pmf, Precision
from leery.metrics.uncertainty import (
    aleatoric,
    confidence,
    epistemic,
    mutual_information,
    predictive_entropy,
    scibilic,
    variance,
)

__all__ = [
    "BandwidthRule",
    "ClassKL",
    "KernelDensity",
    "Pmf",
    "Precision",
    "aleatoric",
    "confidence",
    "epistemic",
    "mutual_information",
    "predictive_entropy",
    "scibilic",
    "variance",
]
