"""Figure 4: the four metrics of uncertainty of one image and of many, under BIM."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from leery.metrics import UNCERTAINTY_METRICS
from leery.reporting import INK, PALETTE, new_figure
from leery.study._report._style import METRIC_LINES, METRIC_NAMES
from leery.study._report.figures._figure import StudyFigure
from leery.study._report.figures._traces import (
    draw_trace,
    grid_text,
    image_title,
    mark_flip,
    mean_title,
    trace_alt,
)
from leery.study._tables import StudyResult

__all__ = ["FIGURE", "uncertainty_trace_figure"]


def median_flip(study: StudyResult, attack: str) -> str:
    table = study.of_first_seed("turning-points")
    flips = table.loc[table["attack"] == attack, "flip"]
    return f"{flips.median():g}" if flips.notna().any() else "none"


def uncertainty_trace_figure(table: pd.DataFrame) -> Figure:
    """Figure 4: the four metrics of uncertainty of one image and of many, under BIM."""
    figure = new_figure(12, 5.4)
    panels = figure.subplots(2, len(UNCERTAINTY_METRICS), sharex=True, sharey="col")
    doubt = table[(table["metric"] == "predictive_entropy") & (table["shown"] == "image")]
    for column, metric in enumerate(UNCERTAINTY_METRICS):
        rows = table[table["metric"] == metric]
        line = {"color": METRIC_LINES[metric]["color"], "linewidth": 1.8}
        draw_trace(panels[:, column], rows, line, METRIC_NAMES[metric])
        _shade(panels[0, column], doubt)
        mark_flip(panels[0, column], rows)
        panels[0, column].set_title(METRIC_NAMES[metric] + _unit(metric))
    for row, title in enumerate((image_title(table), mean_title(table))):
        panels[row, 0].set_ylabel(title)
    figure.supxlabel("epsilon (pixel units of [0, 1])", fontsize=9, color=INK)
    panels[0, 0].legend(*_shade_legend(), loc="upper left", fontsize=7)
    return figure


def _shade(axes: Axes, doubt: pd.DataFrame) -> None:
    """Shade the paper's low-confidence interval: entropy of at least half its largest value."""
    if doubt.empty:
        return
    epsilons, entropy = doubt["epsilon"].to_numpy(), doubt["value"].to_numpy()
    low = entropy >= entropy.max() / 2
    step = (epsilons[1] - epsilons[0]) / 2
    start, stop = epsilons[low].min() - step, epsilons[low].max() + step
    axes.axvspan(start, min(stop, epsilons[-1]), color=PALETTE["orange"], alpha=0.22, lw=0)
    for left, right in ((epsilons[0], start), (stop, epsilons[-1])):
        if right > left:
            axes.axvspan(left, right, color=PALETTE["sky"], alpha=0.16, lw=0)


def _shade_legend() -> tuple[list[Any], list[str]]:
    return (
        [Patch(color=PALETTE["orange"], alpha=0.4), Patch(color=PALETTE["sky"], alpha=0.4)],
        ["low-confidence interval", "high-confidence interval"],
    )


def _unit(metric: str) -> str:
    return " (nats)" if metric in ("predictive_entropy", "mutual_information") else ""


def uncertainty_trace_caption(study: StudyResult) -> str:
    return grid_text(study) + (
        "The line marks the change of label. Orange is the paper's low-confidence interval, here "
        "the strengths between which the entropy is at least half its largest value; blue its "
        "high-confidence intervals, where uncertainty says little. The median of the strengths "
        f"at which labels change is {median_flip(study, 'BIM')}; the mean averages over all."
    )


FIGURE = StudyFigure(
    "uncertainty-trace",
    "uncertainty along the strength of BIM (figure 4)",
    lambda s: trace_alt(s, "uncertainty-trace", "The four metrics of uncertainty"),
    uncertainty_trace_caption,
    lambda s: uncertainty_trace_figure(s.of_first_seed("uncertainty-trace")),
    "uncertainty-trace",
)
