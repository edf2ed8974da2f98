"""Figures 9 and 10: ROC curves, a row for each strength, a column for each attack."""

import pandas as pd
from matplotlib.figure import Figure

from leery.metrics import PAPER_METRICS
from leery.reporting import MUTED
from leery.study._config import PAPER_SETS
from leery.study._report._style import METRIC_LINES, METRIC_NAMES
from leery.study._report.figures._figure import StudyFigure
from leery.study._report.figures._panels import condition_panels, label_grid
from leery.study._tables import StudyResult, held_out_areas

__all__ = ["FIGURE", "roc_figure"]


def roc_figure(table: pd.DataFrame, results: pd.DataFrame) -> Figure:
    """Figures 9 and 10: ROC curves, a row for each strength, a column for each attack."""
    figure, panels = condition_panels(table, 4.1)
    of_all = held_out_areas(results)
    for axes, (attack, epsilon), rows in panels:
        areas = of_all.loc[(attack, epsilon)]
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
        for name in sorted(PAPER_SETS, key=lambda name: -areas[name]):
            curve = rows[rows["metrics"] == name]
            label = f"{areas[name]:.3f}  {METRIC_NAMES[name]}"
            axes.plot(curve["fpr"], curve["tpr"], label=label, **METRIC_LINES[name])
        axes.set_aspect("equal")
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.legend(title="ROC-AUC", loc="lower right", fontsize=7, title_fontsize=7)
    label_grid(figure, "false-positive rate", "true-positive rate")
    return figure


def roc_alt(study: StudyResult) -> str:
    areas = held_out_areas(study.of_first_seed("results"))
    best = areas[list(PAPER_METRICS)]
    parts = [
        f"{attack} {epsilon:.2f}: all six {areas['all'][attack, epsilon]:.3f}, best single metric "
        f"{METRIC_NAMES[row.idxmax()]} {row.max():.3f}"
        for (attack, epsilon), row in best.iterrows()
    ]
    return "ROC curves of nine sets of metrics. Areas: " + "; ".join(parts) + "."


def roc_caption(study: StudyResult) -> str:
    areas = held_out_areas(study.of_first_seed("results"))
    worst = areas["all"].idxmin()
    winners = areas[list(PAPER_METRICS)].idxmax(axis=1).map(METRIC_NAMES.get).unique()
    return (
        "Held out by source image; positives are all adversarial versions, negatives the clean and "
        f"the noisy images. Best single metrics of the six conditions: {', '.join(winners)}. All "
        f"six together are weakest at {worst[0]} {worst[1]:.2f} ({areas['all'].min():.3f})."
    )


FIGURE = StudyFigure(
    "roc",
    "ROC curves (figures 9 and 10)",
    roc_alt,
    roc_caption,
    lambda s: roc_figure(s.of_first_seed("roc"), s.of_first_seed("results")),
    "roc",
)
