"""Certificates: proofs that no attacker within a distance can do something.

This room holds bounds of networks over boxes of images. Nothing here is estimated from samples, and
nothing depends on how an attacker searches.
"""

from leery.certify._sentinel import Sentinel
from leery.intervals import Box, Ramp, interval_bounds, margin_bounds

__all__ = ["Box", "Ramp", "Sentinel", "interval_bounds", "margin_bounds"]
