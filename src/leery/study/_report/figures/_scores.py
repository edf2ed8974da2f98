"""Histograms of the fused score, by kind of image."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from leery.reporting import PALETTE
from leery.study._report.figures._figure import StudyFigure
from leery.study._report.figures._panels import condition_panels, label_grid
from leery.study._tables import StudyResult

__all__ = ["FIGURE", "scores_figure"]


KIND_COLOURS = {
    "clean": PALETTE["blue"],
    "noisy": PALETTE["sky"],
    "adversarial, label changed": PALETTE["vermillion"],
    "adversarial, label kept": PALETTE["orange"],
}


def scores_figure(table: pd.DataFrame) -> Figure:
    """Histograms of the fused score, by kind of image."""
    figure, panels = condition_panels(table, 2.9, sharex=False)
    for axes, _, rows in panels:
        for kind, colour in KIND_COLOURS.items():
            bins = rows[rows["kind"] == kind]
            total = bins["images"].sum()
            if not total:
                continue
            edges = [*bins["low"], bins["high"].iloc[-1]]
            share = bins["images"] / total
            axes.stairs(share, edges, color=colour, lw=1.4)
            axes.stairs(share, edges, color=colour, alpha=0.18, fill=True, lw=0)
    figure.axes[0].legend([Patch(color=c) for c in KIND_COLOURS.values()], KIND_COLOURS, fontsize=7)
    label_grid(figure, "score (log odds of being adversarial)", "share of its kind")
    return figure


def scores_alt(study: StudyResult) -> str:
    table = study.of_first_seed("scores")
    middle = (table["low"] + table["high"]) / 2 * table["images"]
    sums = table.assign(total=middle).groupby("kind", sort=False)[["total", "images"]].sum()
    means = sums["total"] / sums["images"]
    parts = [f"{kind} {mean:.1f}" for kind, mean in means.items() if mean == mean]  # noqa: PLR0124
    return "Histograms of the score by kind of image. Means over conditions: " + ", ".join(parts)


FIGURE = StudyFigure(
    "scores",
    "scores of clean, noisy and adversarial images",
    scores_alt,
    lambda _: (
        "The score is the log odds that the combiner of all six metrics gives, held out. Where "
        "clean or noisy images overlap adversarial ones no threshold separates them. Scores beyond "
        "the axis are counted in its outer bins."
    ),
    lambda s: scores_figure(s.of_first_seed("scores")),
    "scores",
)
