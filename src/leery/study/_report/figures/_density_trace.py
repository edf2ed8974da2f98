"""Figure 5: kernel density under the true, the target and the predicted class."""

import pandas as pd
from matplotlib.figure import Figure

from leery.reporting import new_figure
from leery.study._report._style import epsilon_axis
from leery.study._report.figures._figure import StudyFigure
from leery.study._report.figures._traces import (
    CLOSE_LINES,
    crossing_text,
    draw_trace,
    grid_text,
    image_title,
    mark_flip,
    mean_title,
    trace_alt,
)
from leery.study._tables import StudyResult

__all__ = ["FIGURE", "density_trace_figure"]


def density_trace_figure(table: pd.DataFrame) -> Figure:
    """Figure 5: kernel density under the true, the target and the predicted class."""
    attacks = list(table["attack"].unique())
    figure = new_figure(5 * len(attacks), 6.6)
    panels = figure.subplots(2, len(attacks), sharex=True, squeeze=False)
    for column, attack in enumerate(attacks):
        of_attack = table[table["attack"] == attack]
        for against in of_attack["against"].unique():
            rows = of_attack[of_attack["against"] == against]
            draw_trace(panels[:, column], rows, CLOSE_LINES[against], f"{against} class")
        mark_flip(panels[0, column], of_attack)
        panels[0, column].set_title(f"{attack}: {image_title(table)}")
        panels[1, column].set_title(f"{attack}: {mean_title(of_attack)}")
        epsilon_axis(panels[1, column])
    for axes in panels.flat:
        axes.set_ylabel("log density")
    panels[0, 0].legend()
    return figure


def density_trace_caption(study: StudyResult) -> str:
    return grid_text(study) + (
        "The target is the class at the first change of label, which the vertical line marks; "
        "if the label never changes there is none, so its mean is over fewer images. In the paper "
        "the lines of source and target cross there; among images whose label changes, they do "
        "within one step for "
        f"{crossing_text(study, 'crossing_kernel_density', 'BIM')} under BIM and "
        f"{crossing_text(study, 'crossing_kernel_density', 'FGSM')} under FGSM. Larger is closer."
    )


FIGURE = StudyFigure(
    "density-trace",
    "kernel density along the strength (figure 5)",
    lambda s: trace_alt(s, "density-trace", "Kernel density"),
    density_trace_caption,
    lambda s: density_trace_figure(s.of_first_seed("density-trace")),
    "density-trace",
)
