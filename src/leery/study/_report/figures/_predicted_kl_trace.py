"""Figure 7: KL divergence from the predicted class, under BIM and FGSM."""

import pandas as pd
from matplotlib.figure import Figure

from leery.study._report._style import ATTACK_LINES
from leery.study._report.figures._figure import StudyFigure
from leery.study._report.figures._traces import (
    by_reading,
    crossing_text,
    draw_trace,
    kl_panels,
    mark_flip,
    trace_alt,
)
from leery.study._tables import StudyResult

__all__ = ["FIGURE", "predicted_kl_trace_figure"]


def predicted_kl_trace_figure(table: pd.DataFrame) -> Figure:
    """Figure 7: KL divergence from the predicted class, under BIM and FGSM.

    There is one row of panels per conversion of features to probabilities.
    """
    figure, panels = kl_panels(table)
    for row, of_reading in zip(panels, by_reading(table), strict=True):
        for attack in of_reading["attack"].unique():
            rows = of_reading[of_reading["attack"] == attack]
            line = {key: value for key, value in ATTACK_LINES[attack].items() if key != "marker"}
            draw_trace(row, rows, line, attack)
            mark_flip(row[0], rows, line["color"])
        row[0].legend()
    return figure


def predicted_kl_caption(study: StudyResult) -> str:
    return (
        "Left, the image of figure 1, its changes of label marked; right, mean and band (10 to "
        "90%); above by softmax, below by sum. The paper has a peak at the change of label and BIM "
        "ending far below FGSM. Of the images that change under BIM the peak lies there for "
        f"{crossing_text(study, 'peak_kl_divergence', 'BIM')} (softmax) and "
        f"{crossing_text(study, 'peak_kl_divergence_sum', 'BIM')} (by sum)."
    )


FIGURE = StudyFigure(
    "predicted-kl-trace",
    "KL divergence from the predicted class (figure 7)",
    lambda s: trace_alt(s, "predicted-kl-trace", "KL divergence from the predicted class"),
    predicted_kl_caption,
    lambda s: predicted_kl_trace_figure(s.of_first_seed("predicted-kl-trace")),
    "predicted-kl-trace",
)
