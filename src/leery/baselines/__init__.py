"""Published detectors for comparison; each scores images with a single metric.

Evaluations compare them with a detector on the same images and at the same false-alarm rate. Each
is one of leery's metrics, whose docstring lists the departures from the paper.
"""

from leery.baselines._single import BASELINES, SingleMetric

__all__ = ["BASELINES", "SingleMetric"]
