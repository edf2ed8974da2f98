"""ROC curves at low false-alarm rates, where a detector is operated."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from leery.reporting import MUTED
from leery.study._report._style import METRIC_LINES, METRIC_NAMES
from leery.study._report.figures._figure import StudyFigure
from leery.study._report.figures._panels import condition_panels, label_grid
from leery.study._tables import StudyResult, held_out

__all__ = ["FIGURE", "roc_low_figure"]


def roc_low_figure(table: pd.DataFrame) -> Figure:
    """Draw ROC curves at low false-alarm rates, where a detector is operated."""
    figure, panels = condition_panels(table, 3.0)
    for axes, _, rows in panels:
        for name in ("uncertainty", "closeness", "all"):
            curve = rows[(rows["metrics"] == name) & (rows["fpr"] > 0)]
            axes.plot(curve["fpr"], curve["tpr"], label=METRIC_NAMES[name], **METRIC_LINES[name])
        chance = np.geomspace(1e-3, 1, 50)
        axes.plot(chance, chance, color=MUTED, linewidth=0.8, label="chance")
        axes.set_xscale("log")
        axes.set_xlim(1e-3, 1)
        axes.set_ylim(-0.01, 1.01)
    figure.axes[0].legend(loc="upper left", fontsize=7)
    label_grid(figure, "false-positive rate", "true-positive rate")
    return figure


def roc_low_caption(study: StudyResult) -> str:
    rows = held_out(study.of_first_seed("results"))
    rows = rows[rows["metrics"] == "all"]
    return (
        "The same curves on a logarithmic axis, at rates used in operation. At 1% false alarms "
        f"all six find {rows['tpr_at_1_fpr'].min():.0%} of the adversarial images in the worst "
        f"condition and {rows['tpr_at_1_fpr'].max():.0%} in the best."
    )


FIGURE = StudyFigure(
    "roc-low",
    "ROC curves at few false alarms",
    roc_low_caption,
    roc_low_caption,
    lambda s: roc_low_figure(s.of_first_seed("roc")),
    "roc",
)
