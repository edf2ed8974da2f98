"""Certificates: proofs about every perturbation within a distance.

This package bounds the outputs of networks over boxes of images. Nothing here is sampled, and
nothing depends on an attacker's method.
"""

from leery.certify._pretrained import pretrained_sentinel
from leery.certify._sentinel import Sentinel, SentinelTraining
from leery.intervals import Box, Ramp, interval_bounds, margin_bounds

__all__ = [
    "Box",
    "Ramp",
    "Sentinel",
    "SentinelTraining",
    "interval_bounds",
    "margin_bounds",
    "pretrained_sentinel",
]
