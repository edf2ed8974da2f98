"""Risk-coverage curves: the error rate if the most uncertain images are not answered."""

import pandas as pd
from matplotlib.figure import Figure

from leery.metrics import PAPER_METRICS
from leery.reporting import MUTED, new_figure
from leery.study._report._style import METRIC_LINES, METRIC_NAMES
from leery.study._report.figures._figure import StudyFigure
from leery.study._tables import StudyResult

__all__ = ["FIGURE", "abstention_figure"]


def abstention_figure(table: pd.DataFrame) -> Figure:
    """Draw risk-coverage curves: the error rate if the most uncertain images are not answered."""
    figure = new_figure(8.6, 4.2)
    axes = figure.subplots()
    for metric in PAPER_METRICS:
        rows = table[table["metric"] == metric]
        coverage, risk = rows["kept"] / rows["images"], rows["wrong"] / rows["kept"]
        axes.plot(100 * coverage, 100 * risk, label=METRIC_NAMES[metric], **METRIC_LINES[metric])
    error = 100 * table["wrong"].max() / table["images"].iloc[0]
    axes.axhline(error, color=MUTED, lw=1, label="abstaining at random")
    axes.set_xlim(50, 100.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("coverage (% of the images answered)")
    axes.set_ylabel("risk (% of the answers wrong)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def abstention_alt(study: StudyResult) -> str:
    table = study.of_first_seed("abstention")
    parts = []
    for metric, rows in table[table["metric"].isin(PAPER_METRICS)].groupby("metric", sort=False):
        kept = rows[rows["kept"] <= 0.9 * rows["images"]]
        if len(kept):
            last = kept.iloc[-1]
            parts.append(f"{METRIC_NAMES[metric]} {last['wrong'] / last['kept']:.2%}")
    error = table["wrong"].max() / table["images"].iloc[0]
    return (
        f"Risk-coverage curves. All images answered: {error:.2%} wrong. At 90% coverage: "
        + ", ".join(parts)
    )


FIGURE = StudyFigure(
    "abstention",
    "what abstaining gains (section 5.2)",
    abstention_alt,
    lambda _: (
        "Clean test images, the most uncertain by each metric left unanswered first. The lower "
        "a curve, the better its metric indicates where the classifier is wrong."
    ),
    lambda s: abstention_figure(s.of_first_seed("abstention")),
    "abstention",
)
