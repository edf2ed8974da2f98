"""Names and line styles of metrics and attacks in the study's figures."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from leery.reporting import INK, PALETTE

__all__ = ["ATTACK_LINES", "METRIC_LINES", "METRIC_NAMES", "epsilon_axis"]

METRIC_NAMES: Mapping[str, str] = {
    "variance": "variance",
    "predictive_entropy": "entropy",
    "mutual_information": "mutual information",
    "confidence": "confidence",
    "kernel_density": "kernel density",
    "kl_divergence": "KL divergence",
    "uncertainty": "uncertainty (four)",
    "closeness": "closeness (two)",
    "all": "all six",
    "kl_divergence_sum": "KL divergence by sum",
    "closeness_sum": "closeness, KL by sum",
    "all_sum": "all six, KL by sum",
}
"""Display names of metrics and sets of metrics."""

METRIC_LINES: Mapping[str, dict[str, Any]] = {
    "variance": {"color": PALETTE["sky"], "linestyle": "--", "linewidth": 1.3},
    "predictive_entropy": {"color": PALETTE["green"], "linestyle": "--", "linewidth": 1.3},
    "mutual_information": {"color": PALETTE["purple"], "linestyle": "-.", "linewidth": 1.3},
    "confidence": {"color": PALETTE["green"], "linestyle": ":", "linewidth": 1.8},
    "kernel_density": {"color": PALETTE["vermillion"], "linestyle": ":", "linewidth": 2.0},
    "kl_divergence": {"color": PALETTE["orange"], "linestyle": "--", "linewidth": 1.3},
    "uncertainty": {"color": PALETTE["blue"], "linestyle": "-", "linewidth": 1.7},
    "closeness": {"color": PALETTE["vermillion"], "linestyle": "-", "linewidth": 1.7},
    "all": {"color": INK, "linestyle": "-", "linewidth": 2.2},
}

ATTACK_LINES: Mapping[str, dict[str, Any]] = {
    "FGSM": {"color": PALETTE["vermillion"], "linestyle": "--", "marker": "s"},
    "BIM": {"color": PALETTE["blue"], "linestyle": "-", "marker": "o"},
    "PGD": {"color": PALETTE["green"], "linestyle": ":", "marker": "^"},
}


def epsilon_axis(axes: Axes) -> None:
    """Label the horizontal axis as the strength of an attack."""
    axes.set_xlabel("epsilon (pixel units of [0, 1])")
