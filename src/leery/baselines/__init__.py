"""Other people's detectors, to compare with: each the plain score of its paper, unfused.

They stand beside a detector in evaluations, on the same images and at the same false-alarm rate. A
baseline adds no arithmetic of its own where a metric of leery computes the same quantity.
"""

from leery.baselines._single import BASELINES, SingleMetric

__all__ = ["BASELINES", "SingleMetric"]
