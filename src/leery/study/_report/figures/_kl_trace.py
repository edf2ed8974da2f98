"""Figure 6: KL divergence from the true and the target class, under BIM."""

import pandas as pd
from matplotlib.figure import Figure

from leery.study._report.figures._figure import StudyFigure
from leery.study._report.figures._traces import (
    CLOSE_LINES,
    by_reading,
    crossing_text,
    draw_trace,
    grid_text,
    kl_panels,
    mark_flip,
    trace_alt,
)
from leery.study._tables import StudyResult

__all__ = ["FIGURE", "kl_trace_figure"]


def kl_trace_figure(table: pd.DataFrame) -> Figure:
    """Figure 6: KL divergence from the true and the target class, under BIM.

    There is one row of panels per conversion of features to probabilities.
    """
    figure, panels = kl_panels(table)
    for row, of_reading in zip(panels, by_reading(table), strict=True):
        for against in of_reading["against"].unique():
            rows = of_reading[of_reading["against"] == against]
            draw_trace(row, rows, CLOSE_LINES[against], f"{against} class")
        mark_flip(row[0], of_reading)
        row[0].legend()
    return figure


def kl_trace_caption(study: StudyResult) -> str:
    return grid_text(study) + (
        "Above, features become probabilities by softmax, below by division by their sum: the "
        "paper leaves it open. Smaller is closer. In the paper the lines cross at the flip; "
        "among images whose label changes, they do within one step for "
        f"{crossing_text(study, 'crossing_kl_divergence', 'BIM')} (softmax) and "
        f"{crossing_text(study, 'crossing_kl_divergence_sum', 'BIM')} (by sum)."
    )


FIGURE = StudyFigure(
    "kl-trace",
    "KL divergence along the strength of BIM (figure 6)",
    lambda s: trace_alt(s, "kl-trace", "KL divergence"),
    kl_trace_caption,
    lambda s: kl_trace_figure(s.of_first_seed("kl-trace")),
    "kl-trace",
)
