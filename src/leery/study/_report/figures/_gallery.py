"""The worst misses and false alarms, a column for each condition."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from leery.data import named
from leery.reporting import new_figure
from leery.study._report.figures._figure import StudyFigure
from leery.study._report.figures._panels import pixels_of, without_axes
from leery.study._tables import StudyResult

__all__ = ["FIGURE", "gallery_figure"]


def gallery_figure(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """The worst misses and false alarms, a column for each condition."""
    columns = list(table.groupby(["attack", "epsilon"], sort=False))
    depth = max(len(rows) for _, rows in columns)
    figure = new_figure(2.05 * len(columns), 2.5 * depth)
    panels = figure.subplots(depth, len(columns), squeeze=False)
    for axes in panels.flat:
        without_axes(axes)
        axes.set_visible(False)
    for column, ((attack, epsilon), rows) in enumerate(columns):
        for place, (_, row) in enumerate(rows.iterrows()):
            axes = panels[place, column]
            axes.set_visible(True)
            axes.imshow(pixels_of(row), cmap="gray", vmin=0, vmax=1)
            heading = f"{attack} {epsilon:.2f}\n" if place == 0 else ""
            axes.set_title(
                f"{heading}{row['kind']}\n{names[row['label']]} seen as {names[row['predicted']]}"
                f"\nscore {row['score']:.1f}",
                fontsize=7.5,
            )
    return figure


def gallery_alt(study: StudyResult) -> str:
    names = named(study.dataset).classes
    return "Images with their scores. " + "; ".join(
        f"{row['attack']} {row['epsilon']:.2f}, {row['kind']}: {names[row['label']]} seen as "
        f"{names[row['predicted']]}"
        for row in study.of_first_seed("gallery").to_dict("records")
    )


FIGURE = StudyFigure(
    "gallery",
    "the worst misses and the worst false alarms",
    gallery_alt,
    lambda _: (
        "For each condition the two adversarial images of lowest score among those whose label "
        "changed, and the clean and the noisy image of highest score. Their metrics are in the "
        "table below."
    ),
    lambda s: gallery_figure(s.of_first_seed("gallery"), named(s.dataset).classes),
    "gallery",
)
