"""Figure 1: an image, what is added to it, and the sum, with predictions."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from leery.data import named
from leery.reporting import new_figure
from leery.study._report.figures._figure import StudyFigure
from leery.study._report.figures._panels import pixels_of, without_axes
from leery.study._tables import StudyResult

__all__ = ["FIGURE", "example_figure"]


def example_figure(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Figure 1: an image, what is added to it, and the sum, with predictions."""
    figure = new_figure(9, 3.3)
    clean, adversarial = (pixels_of(row) for _, row in table.iterrows())
    first, last = (row for _, row in table.iterrows())
    left, middle, right = figure.subplots(1, 3)
    for axes, image, row in ((left, clean, first), (right, adversarial, last)):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_title(
            f"{row['panel']}: {names[row['predicted']]}\nconfidence {row['confidence']:.2f}"
        )
    reach = float(first["epsilon"])
    shown = middle.imshow(adversarial - clean, cmap="RdBu_r", vmin=-reach, vmax=reach)
    figure.colorbar(shown, ax=middle, shrink=0.8, label="pixel units of [0, 1]")
    middle.set_title(f"{first['attack']} perturbation\nepsilon {reach:g}")
    for axes in (left, middle, right):
        without_axes(axes)
    return figure


def example_alt(study: StudyResult) -> str:
    clean, adversarial = study.of_first_seed("example").to_dict("records")
    names = named(study.dataset).classes
    return (
        f"Test image {clean['source']}, classified as {names[clean['predicted']]} with confidence "
        f"{clean['confidence']:.2f}; the perturbation; and their sum, classified as "
        f"{names[adversarial['predicted']]} with confidence {adversarial['confidence']:.2f}."
    )


def example_caption(study: StudyResult) -> str:
    row = study.of_first_seed("example").iloc[0]
    return (
        "The first test image whose label both BIM and FGSM change inside the range, under "
        f"{row['attack']} at {row['epsilon']:g}, the smallest grid strength that changes it. "
        "The confidence is the mean over the dropout passes; the label is that with dropout off."
    )


FIGURE = StudyFigure(
    "example",
    "an adversarial example (the paper's figure 1)",
    example_alt,
    example_caption,
    lambda s: example_figure(s.of_first_seed("example"), named(s.dataset).classes),
    "example",
)
