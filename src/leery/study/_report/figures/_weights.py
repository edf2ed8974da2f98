"""The weights of the combiner, a dot for each fold."""

import pandas as pd
from matplotlib.figure import Figure

from leery.metrics import PAPER_METRICS
from leery.reporting import INK, MUTED, PALETTE
from leery.study._report._style import METRIC_NAMES
from leery.study._report.figures._figure import StudyFigure
from leery.study._report.figures._panels import condition_panels, label_grid
from leery.study._tables import StudyResult

__all__ = ["FIGURE", "weights_figure"]


def weights_figure(table: pd.DataFrame) -> Figure:
    """The weights of the combiner, a dot for each fold."""
    figure, panels = condition_panels(table, 2.7)
    for axes, _, rows in panels:
        axes.axvline(0, color=MUTED, lw=1)
        for place, metric in enumerate(reversed(PAPER_METRICS)):
            weights = rows.loc[rows["metric"] == metric, "weight"]
            axes.barh(place, weights.mean(), color=PALETTE["sky"], height=0.6)
            axes.plot(weights, [place] * len(weights), "o", color=INK, markersize=2.5)
        names = [METRIC_NAMES[metric] for metric in reversed(PAPER_METRICS)]
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False, axis="y")
    label_grid(figure, "weight of the standardised metric", "")
    return figure


def weights_alt(study: StudyResult) -> str:
    table = study.of_first_seed("weights")
    strongest = table.groupby(["attack", "epsilon", "metric"], sort=False)["weight"].mean()
    parts = []
    for (attack, epsilon), weights in strongest.groupby(["attack", "epsilon"], sort=False):
        name = weights.abs().idxmax()[2]
        weight = weights.loc[(attack, epsilon, name)]
        parts.append(f"{attack} {epsilon:.2f}: {METRIC_NAMES[name]} {weight:.1f}")
    return "Weights of the combiner. The largest of each condition: " + "; ".join(parts) + "."


FIGURE = StudyFigure(
    "weights",
    "what the combiner learned",
    weights_alt,
    lambda _: (
        "Bars are means over the five folds, dots the folds; positive weights raise the score. "
        "The four metrics of uncertainty move together, so a single one's weight, even its "
        "sign, says little; compare them as a group with kernel density."
    ),
    lambda s: weights_figure(s.of_first_seed("weights")),
    "weights",
)
